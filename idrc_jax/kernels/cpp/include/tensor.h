// Images in memory, float32 and NHWC, and what becomes of the sums of a layer.

#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <new>

#include "simd.h"

namespace idrc {

// Channels that are computed together, of layers that have a multiple of kNarrow of them.
constexpr int kNarrow = 16, kWide = 32;

// The tile of sums for so many channels: its vectors and, so that it fits the registers, its rows.
template <int kChannels>
struct Tile {
  static constexpr int kVectors = kChannels / kLanes, kRows = kSums / kVectors;
};

struct Release {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

using Buffer = std::unique_ptr<float[], Release>;

inline Buffer Uninitialised(std::size_t size) {
  return Buffer(static_cast<float*>(::operator new[](size * sizeof(float), std::align_val_t{64})));
}

inline Buffer Zeros(std::size_t size) {
  Buffer memory = Uninitialised(size);
  std::memset(memory.get(), 0, size * sizeof(float));
  return memory;
}

// One image's activations: height x width pixels of `channels` numbers, and a border of so many pixels.
struct Shape {
  int height = 0, width = 0, channels = 0, border = 1;

  int Row() const { return (width + 2 * border) * channels; }
  std::size_t Size() const { return static_cast<std::size_t>(height + 2 * border) * Row(); }
  std::ptrdiff_t At(int y, int x) const {
    return static_cast<std::ptrdiff_t>(y + border) * Row() + (x + border) * channels;
  }
  Shape Halved() const { return {(height + 1) / 2, (width + 1) / 2, 2 * channels}; }
};

struct Layer {
  const float* weights;  // [size, size, in, out]
  const float* bias;     // [out], or none
  bool relu;
  bool half;
};

inline Vector Bias(const Layer& layer, int channel) { return layer.bias ? Load(layer.bias + channel) : Vector{}; }

// `shortcut` may be none, and may be `to`.
inline void Finish(const Layer& layer, Vector sum, const float* shortcut, float* to) {
  if (shortcut) sum += Load(shortcut);
  if (layer.relu) sum = Relu(sum);
  Store(to, layer.half ? RoundToHalf(sum) : sum);
}

}  // namespace idrc
