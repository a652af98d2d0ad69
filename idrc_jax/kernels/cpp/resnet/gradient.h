// The gradient with respect to images.

#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "resnet/worker.h"

namespace idrc {
namespace {

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

}  // namespace
}  // namespace idrc
