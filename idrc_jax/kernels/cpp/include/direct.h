// Convolutions by their definition, and the gradients of their weights.

#pragma once

#include <algorithm>
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
  const bool narrow = out.channels % kWide != 0;
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
  const bool narrow = out.channels % kWide != 0;
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

// Weights [size, size, in, out] turned about their middle, [size, size, out, in]: those of the adjoint.
inline void Turn(const float* weights, int size, int in, int out, float* to) {
  for (int tap = size * size - 1; tap >= 0; --tap, to += in * out) {
    const float* from = weights + static_cast<std::ptrdiff_t>(tap) * in * out;
    for (int k = 0; k < in; ++k) {
      for (int c = 0; c < out; ++c) to[c * in + k] = from[k * out + c];
    }
  }
}

// `count` pixels of one row, every other one, and the channels of one tile; see `ConvolveAdjoint`.
template <int kSize, int kRows, int kVectors>
__attribute__((noinline)) void AdjointPixels(const float* turned, const float* gradient, Shape out, int y, int x,
                                             int count, Shape in, int channel, float* to) {
  constexpr int kHalf = kSize / 2;
  for (; count >= kRows; count -= kRows, x += 2 * kRows) {
    Sums<kRows, kVectors> sums;
    sums.Clear();
    for (int ky = (y + kHalf) % 2; ky < kSize; ky += 2) {
      for (int kx = (x + kHalf) % 2; kx < kSize; kx += 2) {
        const float* tap = gradient + out.At((y + kHalf - ky) / 2, (x + kHalf - kx) / 2);
        const int place = (kSize - 1 - ky) * kSize + kSize - 1 - kx;
        const float* weights = turned + static_cast<std::ptrdiff_t>(place) * out.channels * in.channels + channel;
        for (int k = 0; k < out.channels; ++k, weights += in.channels) sums.Add(tap + k, out.channels, weights);
      }
    }
    sums.Write(to + in.At(y, x) + channel, 2 * in.channels);
  }
  if constexpr (kRows > 1) {
    if (count > 0) {
      AdjointPixels<kSize, kRows / 2, kVectors>(turned, gradient, out, y, x, count, in, channel, to);
    }
  }
}

// The gradient with respect to the pixels, of 1x1 or 3x3 weights (turned) and stride 2, from that with respect to the
// results, which has a border. Those of 1x1 reach only pixels of even row and column: the others are left as they are.
template <int kSize>
void ConvolveAdjoint(const float* turned, const float* gradient, Shape out, Shape in, float* to) {
  const bool narrow = in.channels % kWide != 0;
  auto* run = narrow ? AdjointPixels<kSize, Tile<kNarrow>::kRows, Tile<kNarrow>::kVectors>
                     : AdjointPixels<kSize, Tile<kWide>::kRows, Tile<kWide>::kVectors>;
  constexpr int kStep = kSize == 1 ? 2 : 1;
  for (int y = 0; y < in.height; y += kStep) {
    for (int x = 0; x < std::min(kSize == 1 ? 1 : 2, in.width); ++x) {
      for (int c = 0; c < in.channels; c += narrow ? kNarrow : kWide) {
        run(turned, gradient, out, y, x, (in.width - x + 1) / 2, in, c, to);
      }
    }
  }
}

}  // namespace idrc
