// A residual network for small images that keeps its activations in a core's cache.
//
// A task takes a group of images through a whole stage before the next stage begins, so that the group's activations
// and a layer's weights stay in the level-2 cache. Activations are float32, NHWC, with a border of one zero pixel.
// Batch normalisation is folded into the weights; bias, shortcut and ReLU are applied before a value is stored, and
// with `half` it is rounded to bfloat16 as it is stored. Convolutions of 3x3 and stride 1 use minimal filtering where
// the size is a multiple of 4; the others are direct. The plain-JAX twin is `models/folding.py`;
// `kernels/resnet_cpu.py` packs the weights.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "direct.h"
#include "self_test.h"
#include "tasks.h"
#include "winograd.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace idrc {
namespace {

constexpr int kAlignment = 16;                   // numbers: where packed tensors begin
constexpr int kTask = 8;                         // images of a task
constexpr std::size_t kCacheBytes = 400 * 1024;  // of activations at a time: a part of a level-2 cache

struct Block {
  Layer first, second, projection;  // no projection: its weights are null
};

struct Stage {
  Shape shape;
  int group;  // images that go through the stage together
  std::vector<Block> blocks;
};

// Reads the packed weights in order; every tensor begins at a multiple of kAlignment numbers.
class Reader {
 public:
  explicit Reader(const float* from) : from_(from) {}

  const float* Take(std::size_t size) {
    const float* tensor = from_ + taken_;
    taken_ += (size + kAlignment - 1) / kAlignment * kAlignment;
    return tensor;
  }
  Layer TakeLayer(std::size_t size, int channels, bool relu, bool half) {
    const float* weights = Take(size);
    return {weights, Take(channels), relu, half};
  }
  std::size_t taken() const { return taken_; }

 private:
  const float* from_;
  std::size_t taken_ = 0;
};

struct Network {
  Shape image;
  int classes;
  bool half;
  const float *mean, *inverse_std, *head, *head_bias;
  Layer stem;
  std::vector<Stage> stages;
  std::size_t taken;  // numbers that the weights must have

  std::ptrdiff_t Pixels() const { return static_cast<std::ptrdiff_t>(image.height) * image.width * image.channels; }

  Network(const float* weights, Shape image, int classes, int blocks, bool projection, bool half)
      : image(image), classes(classes), half(half) {
    Reader reader(weights);
    mean = reader.Take(image.channels);
    inverse_std = reader.Take(image.channels);
    stem = reader.TakeLayer(9 * image.channels * kNarrow, kNarrow, true, half);
    Shape shape{image.height, image.width, kNarrow};
    for (int s = 0; s < 3; ++s) {
      if (s > 0) shape = shape.Halved();
      const std::size_t per_image = 2 * shape.Size() * sizeof(float);
      const int group = static_cast<int>(std::clamp<std::size_t>(kCacheBytes / per_image, 1, kTask));
      Stage stage{shape, group, {}};
      const std::size_t full = 9 * shape.channels * shape.channels;
      for (int b = 0; b < blocks; ++b) {
        const bool enters = s > 0 && b == 0;
        const std::size_t halved = shape.channels * shape.channels / 2;
        Block block{};
        block.first = reader.TakeLayer(enters ? 9 * halved : full, shape.channels, true, half);
        block.second = reader.TakeLayer(full, shape.channels, true, half);
        if (enters && projection) block.projection = reader.TakeLayer(halved, shape.channels, false, half);
        stage.blocks.push_back(block);
      }
      stages.push_back(std::move(stage));
    }
    head = reader.Take(shape.channels * classes);
    head_bias = reader.Take(classes);
    taken = reader.taken();
  }
};

// Which values were above 0 when they were cut there, a byte each; the last that are kept are the first to be used.
class Cuts {
 public:
  void Keep(const float* values, Shape shape, int count) {
    const int row = shape.width * shape.channels;
    const std::size_t start = kept_.size();
    kept_.resize(start + static_cast<std::size_t>(count) * shape.height * row);
    Rows(shape, count, start, [&](std::ptrdiff_t at, std::size_t kept) {
      const float* __restrict from = values + at;
      unsigned char* __restrict to = kept_.data() + kept;
      for (int x = 0; x < row; ++x) to[x] = from[x] > 0.0f;
    });
  }

  // Cuts gradients where the values were.
  void Use(float* values, Shape shape, int count) {
    const int row = shape.width * shape.channels;
    const std::size_t start = kept_.size() - static_cast<std::size_t>(count) * shape.height * row;
    Rows(shape, count, start, [&](std::ptrdiff_t at, std::size_t kept) {
      const unsigned char* __restrict from = kept_.data() + kept;
      float* __restrict to = values + at;
      for (int x = 0; x < row; ++x) to[x] = from[x] ? to[x] : 0.0f;
    });
    kept_.resize(start);
  }

 private:
  template <class Row>
  static void Rows(Shape shape, int count, std::size_t kept, const Row& row) {
    for (int i = 0; i < count; ++i) {
      for (int y = 0; y < shape.height; ++y, kept += shape.width * shape.channels) {
        row(static_cast<std::ptrdiff_t>(i * shape.Size()) + shape.At(y, 0), kept);
      }
    }
  }

  std::vector<unsigned char> kept_;
};

// Takes tasks of up to kTask images through the network, in memory of its own.
class Worker {
 public:
  explicit Worker(const Network& network)
      : network_(network), input_(Zeros(network.image.Size())), scratch_(Zeros(Winograd::Scratch(64))) {
    for (const Stage& stage : network.stages) {
      const int images = &stage == &network.stages.back() ? kTask : stage.group;
      now_.push_back(Zeros(images * stage.shape.Size()));
      between_.push_back(Zeros(images * stage.shape.Size()));
    }
  }

  void Run(const float* images, int count, float* logits) {
    const int group = network_.stages[1].group;
    for (int start = 0; start < count; start += group) {
      const int some = std::min(group, count - start);
      for (int i = 0; i < some; ++i) {
        Normalise(images + (start + i) * network_.Pixels());
        Convolve<3, 1>(network_.stem, input_.get(), network_.image, network_.stages[0].shape, nullptr,
                       now_[0].get());
        Keep(now_[0].get(), network_.stages[0].shape, 1);
        Blocks(0, 0, 1);
        Enter(1, 0, i);
      }
      Blocks(1, 0, some);
      for (int i = 0; i < some; ++i) Enter(2, i, start + i);
    }
    for (int start = 0; start < count; start += network_.stages[2].group) {
      Blocks(2, start, std::min(network_.stages[2].group, count - start));
    }
    for (int i = 0; i < count; ++i) Head(i, logits + static_cast<std::ptrdiff_t>(i) * network_.classes);
  }

 protected:
  Cuts* cuts_ = nullptr;  // where they are to be kept

  void Keep(const float* values, Shape shape, int count) {
    if (cuts_) cuts_->Keep(values, shape, count);
  }

  void Normalise(const float* image) {
    const Shape& shape = network_.image;
    for (int y = 0; y < shape.height; ++y) {
      float* to = input_.get() + shape.At(y, 0);
      for (int x = 0; x < shape.width; ++x) {
        for (int c = 0; c < shape.channels; ++c, ++image, ++to) {
          *to = (*image - network_.mean[c]) * network_.inverse_std[c];
          if (network_.half) *to = RoundToHalf(Vector{*to})[0];
        }
      }
    }
  }

  // From one image's end of a stage to the middle of the next stage's first block, and its shortcut.
  void Enter(int s, int from_slot, int slot) {
    const Shape in = network_.stages[s - 1].shape, out = network_.stages[s].shape;
    const Block& block = network_.stages[s].blocks.front();
    const float* from = now_[s - 1].get() + from_slot * in.Size();
    float* shortcut = now_[s].get() + slot * out.Size();
    float* between = between_[s].get() + slot * out.Size();
    Convolve<3, 2>(block.first, from, in, out, nullptr, between);
    Keep(between, out, 1);
    if (block.projection.weights) {
      Convolve<1, 2>(block.projection, from, in, out, nullptr, shortcut);
      return;
    }
    for (int y = 0; y < out.height; ++y) {
      for (int x = 0; x < out.width; ++x) {
        float* pixel = shortcut + out.At(y, x);
        std::fill_n(pixel, out.channels, 0.0f);
        std::copy_n(from + in.At(2 * y, 2 * x), in.channels, pixel + in.channels / 2);
      }
    }
  }

  void Blocks(int s, int slot, int count) {
    const Stage& stage = network_.stages[s];
    float* now = now_[s].get() + slot * stage.shape.Size();
    float* between = between_[s].get() + slot * stage.shape.Size();
    for (const Block& block : stage.blocks) {
      const bool entered = s > 0 && &block == &stage.blocks.front();
      if (!entered) {
        Square(block.first, now, stage.shape, count, nullptr, between);
        Keep(between, stage.shape, count);
      }
      Square(block.second, between, stage.shape, count, now, now);
      Keep(now, stage.shape, count);
    }
  }

  // A convolution of 3x3 that keeps the shape.
  void Square(const Layer& layer, const float* from, Shape shape, int count, const float* shortcut, float* to) {
    if (Winograd::Fits(shape)) {
      Winograd::Run(layer, from, shape, count, shape, shortcut, to, scratch_.get());
      return;
    }
    for (int i = 0; i < count; ++i) {
      const std::size_t at = i * shape.Size();
      Convolve<3, 1>(layer, from + at, shape, shape, shortcut ? shortcut + at : nullptr, to + at);
    }
  }

  void Head(int slot, float* logits) {
    const Shape& shape = network_.stages.back().shape;
    const float* from = now_.back().get() + slot * shape.Size();
    std::vector<float> mean(shape.channels);
    for (int y = 0; y < shape.height; ++y) {
      for (int x = 0; x < shape.width; ++x) {
        for (int c = 0; c < shape.channels; ++c) mean[c] += from[shape.At(y, x) + c];
      }
    }
    std::copy_n(network_.head_bias, network_.classes, logits);
    for (int c = 0; c < shape.channels; ++c) {
      const float value = mean[c] / static_cast<float>(shape.height * shape.width);
      for (int k = 0; k < network_.classes; ++k) logits[k] += value * network_.head[c * network_.classes + k];
    }
  }

  const Network& network_;
  Buffer input_, scratch_;
  std::vector<Buffer> now_, between_;  // a stage's activations, and those in the middle of a block
};

// Makes the gradient with respect to images: the same way forward, and all of it backward.
class GradientWorker : public Worker {
 public:
  // turned: every convolution's weights turned, in the network's order, the stem's with channels up to a whole tile.
  GradientWorker(const Network& network, const float* turned)
      : Worker(network), wide_{network.image.height, network.image.width, Padded(network.image.channels), 0} {
    cuts_ = &own_cuts_;
    Reader reader(turned);
    stem_ = Take(reader, 9 * kNarrow * wide_.channels);
    for (const Stage& stage : network.stages) {
      const std::size_t full = 9 * stage.shape.channels * stage.shape.channels;
      std::vector<Block> blocks;
      for (const Block& block : stage.blocks) {
        const bool enters = !blocks_.empty() && blocks.empty();
        Block turned_block{};
        turned_block.first = Take(reader, enters ? full / 2 : full);
        turned_block.second = Take(reader, full);
        if (block.projection.weights) turned_block.projection = Take(reader, full / 18);
        blocks.push_back(turned_block);
      }
      blocks_.push_back(std::move(blocks));
    }
    taken_ = reader.taken();
    std::size_t most = 0;
    for (const Stage& stage : network.stages) most = std::max(most, stage.shape.Size());
    added_ = Zeros(most);
    pixels_ = Zeros(wide_.Size());
  }

  static int Padded(int channels) { return channels <= kNarrow ? kNarrow : (channels + kWide - 1) / kWide * kWide; }
  std::size_t taken() const { return taken_; }

  void Run(const float* images, int count, const float* to_logits, float* to_images) {
    std::vector<float> logits(static_cast<std::size_t>(count) * network_.classes);
    Worker::Run(images, count, logits.data());
    for (int i = 0; i < count; ++i) Head(i, to_logits + static_cast<std::ptrdiff_t>(i) * network_.classes);
    // Groups as forward, from the last to the first.
    const int group = network_.stages[1].group, last_group = network_.stages[2].group;
    for (int start = (count - 1) / last_group * last_group; start >= 0; start -= last_group) {
      Blocks(2, start, std::min(last_group, count - start));
    }
    for (int start = (count - 1) / group * group; start >= 0; start -= group) {
      const int some = std::min(group, count - start);
      for (int i = some - 1; i >= 0; --i) Leave(2, start + i, i);
      Blocks(1, 0, some);
      for (int i = some - 1; i >= 0; --i) {
        Leave(1, i, 0);
        Blocks(0, 0, 1);
        Pixels(to_images + (start + i) * network_.Pixels());
      }
    }
  }

 private:
  static Layer Take(Reader& reader, std::size_t size) { return {reader.Take(size), nullptr, false, false}; }

  // From a logit's gradient to that of an image's last activations.
  void Head(int slot, const float* to_logits) {
    const Shape& shape = network_.stages.back().shape;
    float* to = now_.back().get() + slot * shape.Size();
    for (int c = 0; c < shape.channels; ++c) {
      float sum = 0;
      for (int k = 0; k < network_.classes; ++k) sum += to_logits[k] * network_.head[c * network_.classes + k];
      sum /= static_cast<float>(shape.height * shape.width);
      for (int y = 0; y < shape.height; ++y) {
        for (int x = 0; x < shape.width; ++x) to[shape.At(y, x) + c] = sum;
      }
    }
  }

  // From a stage's end to its beginning; a later stage's first block is left in its middle.
  void Blocks(int s, int slot, int count) {
    const Shape shape = network_.stages[s].shape;
    float* now = now_[s].get() + slot * shape.Size();
    float* between = between_[s].get() + slot * shape.Size();
    for (std::size_t b = blocks_[s].size(); b-- > 0;) {
      const bool entered = s > 0 && b == 0;
      cuts_->Use(now, shape, count);
      Square(blocks_[s][b].second, now, shape, count, nullptr, between);
      if (entered) return;
      cuts_->Use(between, shape, count);
      Square(blocks_[s][b].first, between, shape, count, now, now);
    }
  }

  // From the middle of an image's first block of a stage, and from its end by the shortcut, to the end of the stage before.
  void Leave(int s, int from_slot, int slot) {
    const Shape in = network_.stages[s - 1].shape, out = network_.stages[s].shape;
    const Block& block = blocks_[s].front();
    const float* end = now_[s].get() + from_slot * out.Size();
    float* between = between_[s].get() + from_slot * out.Size();
    float* to = now_[s - 1].get() + slot * in.Size();
    cuts_->Use(between, out, 1);
    ConvolveAdjoint<3>(block.first.weights, between, out, in, to);
    if (block.projection.weights) ConvolveAdjoint<1>(block.projection.weights, end, out, in, added_.get());
    for (int y = 0; y < out.height; ++y) {
      for (int x = 0; x < out.width; ++x) {
        const std::ptrdiff_t at = in.At(2 * y, 2 * x);
        const float* from = block.projection.weights ? added_.get() + at : end + out.At(y, x) + in.channels / 2;
        for (int c = 0; c < in.channels; ++c) to[at + c] += from[c];
      }
    }
  }

  void Pixels(float* to) {
    const Shape shape = network_.stages[0].shape;
    cuts_->Use(now_[0].get(), shape, 1);
    Convolve<3, 1>(stem_, now_[0].get(), shape, wide_, nullptr, pixels_.get());
    for (int pixel = 0; pixel < wide_.height * wide_.width; ++pixel) {
      for (int c = 0; c < network_.image.channels; ++c) {
        *to++ = pixels_[pixel * wide_.channels + c] * network_.inverse_std[c];
      }
    }
  }

  Cuts own_cuts_;
  Shape wide_;  // of the image, its channels up to a whole tile
  Layer stem_;
  std::vector<std::vector<Block>> blocks_;  // of each stage, their weights turned
  std::size_t taken_ = 0;
  Buffer added_, pixels_;
};

ffi::Error InputGradient(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights,
                         ffi::Buffer<ffi::F32> turned, ffi::Buffer<ffi::F32> to_logits,
                         ffi::ResultBuffer<ffi::F32> to_images, std::int64_t blocks, bool projection, bool half) {
  const auto size = images.dimensions();
  if (size.size() != 4 || to_logits.dimensions().size() != 2 || to_logits.dimensions()[0] != size[0] ||
      to_images->element_count() != images.element_count()) {
    return ffi::Error::InvalidArgument("Expected images [N, H, W, C] and gradients [N, classes].");
  }
  const Shape image{static_cast<int>(size[1]), static_cast<int>(size[2]), static_cast<int>(size[3])};
  const Network network(weights.typed_data(), image, static_cast<int>(to_logits.dimensions()[1]),
                        static_cast<int>(blocks), projection, half);
  if (weights.element_count() != network.taken ||
      turned.element_count() != GradientWorker(network, turned.typed_data()).taken()) {
    return ffi::Error::InvalidArgument("Expected as many weights as the network has.");
  }
  const int count = static_cast<int>(size[0]);
  const float *from = images.typed_data(), *back = to_logits.typed_data();
  float* to = to_images->typed_data();
  ForEachTask(pool, (count + kTask - 1) / kTask, [&] {
    return [worker = std::make_unique<GradientWorker>(network, turned.typed_data()), &network, from, back, to,
            count](int task) mutable {
      const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(task) * kTask;
      worker->Run(from + first * network.Pixels(), std::min<int>(kTask, count - first), back + first * network.classes,
                  to + first * network.Pixels());
    };
  });
  return ffi::Error::Success();
}

ffi::Error Classify(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights,
                    ffi::ResultBuffer<ffi::F32> logits, std::int64_t blocks, bool projection, bool half) {
  const auto size = images.dimensions();
  if (size.size() != 4 || logits->dimensions().size() != 2 || logits->dimensions()[0] != size[0]) {
    return ffi::Error::InvalidArgument("Expected images [N, H, W, C] and logits [N, classes].");
  }
  const Shape image{static_cast<int>(size[1]), static_cast<int>(size[2]), static_cast<int>(size[3])};
  const Network network(weights.typed_data(), image, static_cast<int>(logits->dimensions()[1]),
                        static_cast<int>(blocks), projection, half);
  if (weights.element_count() != network.taken) {
    return ffi::Error::InvalidArgument("Expected as many weights as the network has.");
  }
  const int count = static_cast<int>(size[0]);
  const float* from = images.typed_data();
  float* to = logits->typed_data();
  ForEachTask(pool, (count + kTask - 1) / kTask, [&] {
    return [worker = Worker(network), &network, from, to, count](int task) mutable {
      const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(task) * kTask;
      worker.Run(from + first * network.Pixels(), std::min<int>(kTask, count - first), to + first * network.classes);
    };
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace idrc

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcResnetGradient, idrc::InputGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<std::int64_t>("blocks")
                                  .Attr<bool>("projection")
                                  .Attr<bool>("half"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcResnet, idrc::Classify,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<std::int64_t>("blocks")
                                  .Attr<bool>("projection")
                                  .Attr<bool>("half"));
