// The network as its packed weights say it: layers by stages, and how many images go through a stage together.

#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "direct.h"

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

}  // namespace
}  // namespace idrc
