"""PyTorch's side of the tests: the networks of the field, written with its layers, under the names of their files."""

import torch
from torch import nn
from torch.nn import functional


class Normalise(nn.Module):
    """Cohen et al.'s first layer; `stored` decides whether its moments are in the state dict."""

    def __init__(self, means, sds, stored=True):
        super().__init__()
        self.register_buffer("means", torch.tensor(means), persistent=stored)
        self.register_buffer("sds", torch.tensor(sds), persistent=stored)

    def forward(self, x):
        return (x - self.means[:, None, None]) / self.sds[:, None, None]


class ZeroPad(nn.Module):
    """Option A of He et al.: every second pixel, zero channels before and after."""

    def __init__(self, pad):
        super().__init__()
        self.pad = pad

    def forward(self, x):
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))


def projection(features_in, features, stride):
    return nn.Sequential(nn.Conv2d(features_in, features, 1, stride, bias=False), nn.BatchNorm2d(features))


class Basic(nn.Module):
    def __init__(self, features_in, features, stride, option_a):
        super().__init__()
        self.conv1 = nn.Conv2d(features_in, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.name = "shortcut" if option_a else "downsample"
        short = ZeroPad(features // 4) if option_a else projection(features_in, features, stride)
        self.add_module(self.name, short if stride != 1 else nn.Identity())

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + getattr(self, self.name)(x))


class CifarResNet(nn.Module):
    """Akamaster's with option A, Cohen et al.'s with projections."""

    def __init__(self, depth, classes=10, *, option_a):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        features_in = 16
        for stage, features in enumerate((16, 32, 64), start=1):
            blocks = []
            for block in range((depth - 2) // 6):
                blocks.append(Basic(features_in, features, 2 if stage > 1 and block == 0 else 1, option_a))
                features_in = features
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.name = "linear" if option_a else "fc"
        self.add_module(self.name, nn.Linear(64, classes))

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return getattr(self, self.name)(x.mean((2, 3)))


class Bottleneck(nn.Module):
    def __init__(self, features_in, features, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(features_in, features, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv3 = nn.Conv2d(features, 4 * features, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * features)
        self.downsample = None
        if stride != 1 or features_in != 4 * features:
            self.downsample = projection(features_in, 4 * features, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(torch.relu(self.bn2(self.conv2(y)))))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """torchvision's."""

    def __init__(self, classes=1000):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        features_in = 64
        for stage, count in enumerate((3, 4, 6, 3), start=1):
            features = 32 * 2**stage
            blocks = []
            for block in range(count):
                blocks.append(Bottleneck(features_in, features, 2 if stage > 1 and block == 0 else 1))
                features_in = 4 * features
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(2048, classes)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def randomise(network, seed=0):
    """Inference mode, normalisations that have seen something, no tensor that is all 0 or 1, logits of size one."""
    torch.manual_seed(seed)
    for name, value in network.named_parameters():
        if value.ndim > 1:
            nn.init.normal_(value, 0, value[0].numel() ** -0.5)
        elif name.endswith("weight"):
            nn.init.uniform_(value, 0.4, 1)
        else:
            nn.init.normal_(value, 0, 0.2)
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            nn.init.normal_(value, 0, 0.2)
        elif name.endswith("running_var"):
            nn.init.uniform_(value, 0.5, 2)
    return network.eval()


def logits(network, images):
    """Of float32 images [N, H, W, C], by the PyTorch network."""
    with torch.no_grad():
        return network(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
