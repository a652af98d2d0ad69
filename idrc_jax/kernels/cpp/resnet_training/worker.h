// A thread's share of the work, forward and backward alike: groups of images in buffers with borders.

#pragma once

#include <algorithm>
#include <cstddef>

#include "direct.h"
#include "resnet_training/channels.h"
#include "resnet_training/winograd_training.h"

namespace idrc {
namespace {

constexpr std::size_t kGroupBytes = 160 * 1024;  // of a group of images in a buffer: a part of a level-2 cache
constexpr int kGroup = 8;                        // images of a group, at most

class Worker {
 public:
  explicit Worker(Network& network)
      : network_(network),
        image_(Zeros(network.image.Size())),
        filters_(Zeros(TrainingWinograd<kLargest>::kFilters)),
        turned_(Zeros(9 * kLargest * kLargest)),
        scratch_(Zeros(TrainingWinograd<kLargest>::Scratch())) {
    std::size_t largest = 0;
    for (const Unit& unit : network.units) {
      const Shape shape = network.convolutions[unit.main].out;
      const int stage = Network::Stage(shape);
      if (group_[stage]) continue;
      for (group_[stage] = 1; group_[stage] < kGroup && 8 * group_[stage] * shape.Size() <= kGroupBytes;) {
        group_[stage] *= 2;
      }
      const std::size_t size = group_[stage] * shape.Size();
      for (auto& side : sides_) side[stage] = Zeros(size);
      largest = std::max(largest, size);
    }
    for (auto& plain : plain_) plain = Zeros(largest);
  }

 protected:
  static constexpr int kForward = 0, kBackward = 1;

  const Convolution& At(int number) const { return network_.convolutions[number]; }
  int Group(Shape shape) const { return group_[Network::Stage(shape)]; }
  float* Side(int side, Shape shape) { return sides_[side][Network::Stage(shape)].get(); }

  // Images, `count` of them from `first` on.
  struct Images {
    int first, count;
  };

  // Calls run(first image, count, the images that will probably come next) for the groups of a share, in the phase's order.
  template <class Run>
  void Groups(int phase, int share, int group, const Run& run) const {
    const int size = network_.ShareSize(), start = share * size, end = std::min(network_.count, start + size);
    const int groups = (end - start + group - 1) / group;
    for (int g = 0; g < groups; ++g) {
      const bool backwards = phase % 2;
      const int first = start + (backwards ? groups - 1 - g : g) * group, count = std::min(group, end - first);
      const int next = backwards ? std::max(first - group, 0) : first + count;
      run(first, count, Images{next, backwards ? first - next : std::min(group, network_.count - next)});
    }
  }

  // Makes filters of a layer's weights, once a phase.
  void Prepare(int phase, const Convolution& layer, bool backward) {
    if (phase == prepared_) return;
    prepared_ = phase;
    const float* weights = layer.kernel;
    if (backward) {
      Turn(weights, layer.size, layer.in.channels, layer.out.channels, turned_.get());
      weights = turned_.get();
    }
    if (!layer.filtered) return;
    WithChannels(layer.in.channels, [&](auto channels) {
      TrainingWinograd<channels>::Prepare(weights, filters_.get());
    });
  }

  // One image's pixels, normalised.
  const float* Image(int number) {
    const Shape& shape = network_.image;
    const float* from = network_.pixels + number * network_.Pixels();
    for (int y = 0; y < shape.height; ++y) {
      float* to = image_.get() + shape.At(y, 0);
      for (int x = 0; x < shape.width; ++x) {
        for (int c = 0; c < shape.channels; ++c, ++from, ++to) {
          *to = (*from - network_.image_mean[c]) * network_.image_inverse[c];
        }
      }
    }
    return image_.get();
  }

  // A part of an array, which the next group will need.
  static void Next(const float* array, Shape shape, Images next, Fetching& fetching, bool to_write = false) {
    const std::size_t size = Plain(shape).Size();
    if (next.count > 0) fetching.Add(array + next.first * size, next.count * size, to_write);
  }

  // Fills a buffer with a border: to each row, as row(image, y, place among images without a border, to).
  template <class Row>
  static void Fill(Shape shape, int first, int count, float* to, const Row& row) {
    const Shape plain = Plain(shape);
    for (int i = 0; i < count; ++i) {
      for (int y = 0; y < shape.height; ++y) {
        row(first + i, y, (first + i) * static_cast<std::ptrdiff_t>(plain.Size()) + plain.At(y, 0),
            to + i * shape.Size() + shape.At(y, 0));
      }
    }
  }

  // A row of a convolution's results, normalised and cut at 0.
  static void NormalRow(const Convolution& of, std::ptrdiff_t at, float* to) {
    const int channels = of.out.channels, row = of.out.width * channels;
    for (int c = 0; c < channels; c += kLanes) {
      const Normal normal(of, c);
      for (int x = c; x < row; x += channels) Store(to + x, Relu(normal(Load(of.result + at + x))));
    }
  }

  // A row of the gradient with respect to a convolution's results.
  static void GradientRow(const Convolution& of, const float* gradient, std::ptrdiff_t at, float* to) {
    const int channels = of.out.channels, row = of.out.width * channels;
    for (int c = 0; c < channels; c += kLanes) {
      const NormalGradient normal(of, c);
      for (int x = c; x < row; x += channels) {
        Store(to + x, normal(Load(gradient + at + x), Load(of.result + at + x)));
      }
    }
  }

  Network& network_;
  Buffer image_, filters_, turned_, scratch_;
  std::array<int, 3> group_ = {};
  std::array<std::array<Buffer, 3>, 2> sides_;  // a group's images with a border, of each stage, to be convolved
  std::array<Buffer, 2> plain_;                 // and without

 private:
  int prepared_ = -1;
};

}  // namespace
}  // namespace idrc
