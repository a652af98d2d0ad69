// The network that is trained: its layers, and where all that is made of them lies in memory.

#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "tensor.h"
#include "winograd.h"

namespace idrc {
namespace {

constexpr int kShares = 8;   // of a batch
constexpr int kLargest = 64;  // channels

Shape Plain(Shape shape) { return {shape.height, shape.width, shape.channels, 0}; }

// A convolution and the normalisation of its results.
struct Convolution {
  Shape in, out;  // with a border
  int size, stride;
  bool filtered;  // by Winograd's minimal filtering
  const float *kernel, *scale, *bias;
  float* result;                     // [N, H, W, C]
  float *mean, *inverse, *factor;    // of the batch's results: mean, 1 / std, and scale / std
  float *slope, *offset;             // a result's gradient is factor * dy + (result - mean) * slope + offset

  std::size_t Weights() const { return static_cast<std::size_t>(size) * size * in.channels * out.channels; }
  std::size_t Sums() const { return filtered ? 4 * Weights() : Weights(); }
};

// What is normalised, added and cut at 0: the stem's results, or those of a block's second convolution and its shortcut.
struct Unit {
  int main, projection = -1;     // convolutions
  const float* input = nullptr;  // of the block, where that is the shortcut
  Shape in;                      // of that
  float* output;                 // [N, H, W, C]
};

struct Block {
  int first, second, projection = -1;
};

// Hands out parts of one piece of memory; from null, it only counts.
class Parts {
 public:
  explicit Parts(float* from) : from_(from) {}

  float* Take(std::size_t size) {
    float* part = from_ ? from_ + taken_ : nullptr;
    taken_ += (size + 15) / 16 * 16;
    return part;
  }
  std::size_t taken() const { return taken_; }

 private:
  float* from_;
  std::size_t taken_ = 0;
};

struct Network {
  int count;
  Shape image;
  const float *pixels, *image_mean, *image_inverse;
  std::vector<Convolution> convolutions;  // in the order of the arguments
  std::vector<Block> blocks;
  std::vector<Unit> units;  // the stem's, and one a block
  // Working memory.
  std::array<float*, 3> gradients;  // of a unit's sum, where it is above 0, in each stage
  float* inner;                     // the same in the middle of a block
  std::array<float*, 2> sums;       // [shares, weights]: those of this phase, and of the last
  std::size_t largest = 0;          // numbers of one share of these
  std::size_t floats = 0;

  int ShareSize() const { return (count + kShares - 1) / kShares; }
  int Shares() const { return (count + ShareSize() - 1) / ShareSize(); }
  Shape Last() const { return convolutions[units.back().main].out; }
  std::ptrdiff_t Pixels() const { return static_cast<std::ptrdiff_t>(image.height) * image.width * image.channels; }
  static int Stage(Shape shape) { return shape.channels == 16 ? 0 : shape.channels == 32 ? 1 : 2; }

  Network(int count, Shape image, int blocks_a_stage, bool projects) : count(count), image(image) {
    Shape shape{image.height, image.width, 16};
    Add(image, shape, 3, 1);
    units.push_back({0});
    for (int stage = 0; stage < 3; ++stage) {
      for (int b = 0; b < blocks_a_stage; ++b) {
        const bool enters = stage > 0 && b == 0;
        const Shape in = shape;
        if (enters) shape = shape.Halved();
        Block block{Add(in, shape, 3, enters ? 2 : 1), Add(shape, shape, 3, 1)};
        if (enters && projects) block.projection = Add(in, shape, 1, 2);
        units.push_back({block.second, block.projection, nullptr, in});
        blocks.push_back(block);
      }
    }
  }

  // Where everything lies in memory; of null, how much it needs.
  void Place(float* memory) {
    Parts parts(memory);
    largest = 0;
    std::size_t most = 0;  // numbers of an image in the middle of a block, at most
    for (Convolution& one : convolutions) {
      most = std::max(most, Plain(one.out).Size());
      one.result = parts.Take(count * Plain(one.out).Size());
      for (float** each : {&one.mean, &one.inverse, &one.factor, &one.slope, &one.offset}) {
        *each = parts.Take(one.out.channels);
      }
      largest = std::max(largest, one.Sums());
    }
    for (std::size_t u = 0; u < units.size(); ++u) {
      units[u].output = parts.Take(count * Plain(convolutions[units[u].main].out).Size());
      if (u > 0 && units[u].projection < 0) units[u].input = units[u - 1].output;
    }
    for (const Unit& unit : units) {
      const Shape shape = convolutions[unit.main].out;
      float*& gradient = gradients[Stage(shape)];
      if (&unit == &units.front() || shape.channels != convolutions[(&unit - 1)->main].out.channels) {
        gradient = parts.Take(count * Plain(shape).Size());
      }
    }
    inner = parts.Take(count * most);
    largest += 64 * 32;  // a projection's weights behind those of the convolution beside it
    for (float*& one : sums) one = parts.Take(kShares * largest);
    floats = parts.taken();
  }

 private:
  int Add(Shape in, Shape out, int size, int stride) {
    const bool filtered = !convolutions.empty() && size == 3 && stride == 1 && Winograd::Fits(in);
    convolutions.push_back({in, out, size, stride, filtered});
    return static_cast<int>(convolutions.size()) - 1;
  }
};

}  // namespace
}  // namespace idrc
