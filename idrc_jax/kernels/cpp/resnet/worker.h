// A thread's way through the network, forward: a group of images through a whole stage before the next begins.

#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "direct.h"
#include "resnet/network.h"
#include "winograd.h"

namespace idrc {
namespace {

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
      : network_(network), input_(Zeros(network.image.Size())), scratch_(Zeros(Winograd::Scratch(64, 64))) {
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

}  // namespace
}  // namespace idrc
