// Convolutions by their definition, and the gradients of their weights.

#pragma once

#include <cstddef>

#include "tensor.h"

namespace idrc {

// `count` output pixels of one row, side by side, and the channels of one tile: kRows pixels at a time, the rest by
// halves of that.
template <int kSize, int kStride, int kRows, int kVectors>
__attribute__((noinline)) void ConvolvePixels(const Layer& layer, const float* from, Shape in, int y, int x, int count,
                                              Shape out, int channel, const float* shortcut, float* to) {
  for (; count >= kRows; count -= kRows, x += kRows) {
    Sums<kRows, kVectors> sums;
    sums.Clear();
    const float* weights = layer.weights + channel;
    for (int ky = 0; ky < kSize; ++ky) {
      for (int kx = 0; kx < kSize; ++kx) {
        const float* tap = from + in.At(y * kStride - kSize / 2 + ky, x * kStride - kSize / 2 + kx);
        for (int k = 0; k < in.channels; ++k, weights += out.channels) {
          sums.Add(tap + k, kStride * in.channels, weights);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const std::ptrdiff_t at = out.At(y, x + r) + channel + v * kLanes;
        Finish(layer, sums.at[r][v] + Bias(layer, channel + v * kLanes), shortcut ? shortcut + at : nullptr, to + at);
      }
    }
  }
  if constexpr (kRows > 1) {
    if (count > 0) {
      ConvolvePixels<kSize, kStride, kRows / 2, kVectors>(layer, from, in, y, x, count, out, channel, shortcut, to);
    }
  }
}

template <int kSize, int kStride>
void Convolve(const Layer& layer, const float* from, Shape in, Shape out, const float* shortcut, float* to) {
  const bool narrow = out.channels == kNarrow;
  auto* run = narrow ? ConvolvePixels<kSize, kStride, Tile<kNarrow>::kRows, Tile<kNarrow>::kVectors>
                     : ConvolvePixels<kSize, kStride, Tile<kWide>::kRows, Tile<kWide>::kVectors>;
  for (int y = 0; y < out.height; ++y) {
    for (int c = 0; c < out.channels; c += narrow ? kNarrow : kWide) {
      run(layer, from, in, y, 0, out.width, out, c, shortcut, to);
    }
  }
}

// `count` input channels of one tap, and the output channels of one tile.
template <int kStride, int kRows, int kVectors>
__attribute__((noinline)) void AccumulateTap(const float* from, Shape in, const float* gradient, Shape out, int count,
                                             float* sums) {
  for (; count >= kRows; count -= kRows, from += kRows, sums += kRows * out.channels) {
    Sums<kRows, kVectors> tile;
    tile.Read(sums, out.channels);
    for (int y = 0; y < out.height; ++y) {
      const float* pixel = from + static_cast<std::ptrdiff_t>(y) * kStride * in.Row();
      const float* back = gradient + static_cast<std::ptrdiff_t>(y) * out.Row();
      for (int x = 0; x < out.width; ++x, pixel += kStride * in.channels, back += out.channels) {
        tile.Add(pixel, 1, back);
      }
    }
    tile.Write(sums, out.channels);
  }
  if constexpr (kRows > 1) {
    if (count > 0) AccumulateTap<kStride, kRows / 2, kVectors>(from, in, gradient, out, count, sums);
  }
}

// Adds to `sums` [size, size, in, out] the gradient with respect to the weights, of one image.
template <int kSize, int kStride>
void AccumulateWeights(const float* from, Shape in, const float* gradient, Shape out, float* sums) {
  const bool narrow = out.channels == kNarrow;
  auto* run = narrow ? AccumulateTap<kStride, Tile<kNarrow>::kRows, Tile<kNarrow>::kVectors>
                     : AccumulateTap<kStride, Tile<kWide>::kRows, Tile<kWide>::kVectors>;
  for (int ky = 0; ky < kSize; ++ky) {
    for (int kx = 0; kx < kSize; ++kx, sums += in.channels * out.channels) {
      const float* tap = from + in.At(ky - kSize / 2, kx - kSize / 2);
      for (int c = 0; c < out.channels; c += narrow ? kNarrow : kWide) {
        run(tap, in, gradient + out.At(0, 0) + c, out, in.channels, sums + c);
      }
    }
  }
}

}  // namespace idrc
