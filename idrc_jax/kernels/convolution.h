// 3x3 convolutions on a CPU, 16 channels at a time: directly, and by Winograd's minimal filtering F(4x4, 3x3), which
// needs 36 products where the definition has 144 (Lavin and Gray 2016). Arrays are float32, NHWC.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace idrc {

constexpr int kLanes = 16;  // channels that are computed together
#ifdef __AVX512F__
constexpr int kSums = 16;  // vectors of sums that stay in registers
#else
constexpr int kSums = 4;
#endif

using Vector = float __attribute__((vector_size(64), aligned(4)));
using Bits = std::uint32_t __attribute__((vector_size(64), aligned(4)));

inline Vector Load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void Store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

// To the nearest bfloat16, ties to even; what is no number stays none.
inline Vector RoundToHalf(Vector value) {
  const Bits bits = (Bits)value;
  const Bits rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return value == value ? (Vector)rounded : value;
}

// ---- Memory.

struct Release {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

using Buffer = std::unique_ptr<float[], Release>;

inline Buffer Zeros(std::size_t size) {
  auto* memory = static_cast<float*>(::operator new[](size * sizeof(float), std::align_val_t{64}));
  std::memset(memory, 0, size * sizeof(float));
  return Buffer(memory);
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

// ---- What becomes of a sum.

struct Layer {
  const float* weights;  // [size, size, in, out]
  const float* bias;     // [out], or none
  bool relu;
  bool half;
};

// What is no number stays none.
inline Vector Relu(Vector value) {
#ifdef __AVX512F__
  return (Vector)_mm512_max_ps(_mm512_setzero_ps(), (__m512)value);
#else
  return value < 0.0f ? Vector{} : value;
#endif
}

inline Vector Bias(const Layer& layer, int channel) { return layer.bias ? Load(layer.bias + channel) : Vector{}; }

// `shortcut` may be none, and may be `to`.
inline void Finish(const Layer& layer, Vector sum, const float* shortcut, float* to) {
  if (shortcut) sum += Load(shortcut);
  if (layer.relu) sum = Relu(sum);
  Store(to, layer.half ? RoundToHalf(sum) : sum);
}

// ---- Direct convolution.

// A row of output pixels: kPixels at a time, 16 * kVectors channels at a time.
template <int kSize, int kStride, int kPixels, int kVectors>
void ConvolveRow(const Layer& layer, const float* from, Shape in, int y, Shape out, const float* shortcut, float* to) {
  for (int c = 0; c < out.channels; c += kVectors * kLanes) {
    for (int x = 0; x < out.width; x += kPixels) {
      Vector sum[kPixels][kVectors] = {};
      const float* weights = layer.weights + c;
      for (int ky = 0; ky < kSize; ++ky) {
        for (int kx = 0; kx < kSize; ++kx) {
          const float* tap = from + in.At(y * kStride - kSize / 2 + ky, x * kStride - kSize / 2 + kx);
          for (int k = 0; k < in.channels; ++k, weights += out.channels) {
#pragma GCC unroll 16
            for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
              for (int v = 0; v < kVectors; ++v) {
                sum[p][v] += Load(weights + v * kLanes) * tap[p * kStride * in.channels + k];
              }
            }
          }
        }
      }
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
          const std::ptrdiff_t at = out.At(y, x + p) + c + v * kLanes;
          Finish(layer, sum[p][v] + Bias(layer, c + v * kLanes), shortcut ? shortcut + at : nullptr, to + at);
        }
      }
    }
  }
}

template <int kSize, int kStride>
void Convolve(const Layer& layer, const float* from, Shape in, Shape out, const float* shortcut, float* to) {
  const bool narrow = out.channels == kLanes;
  auto* row = narrow ? ConvolveRow<kSize, kStride, 1, 1> : ConvolveRow<kSize, kStride, 1, 2>;
  if (narrow && out.width % kSums == 0) {
    row = ConvolveRow<kSize, kStride, kSums, 1>;
  } else if (out.width % (kSums / 2) == 0) {
    row = narrow ? ConvolveRow<kSize, kStride, kSums / 2, 1> : ConvolveRow<kSize, kStride, kSums / 2, 2>;
  }
  for (int y = 0; y < out.height; ++y) row(layer, from, in, y, out, shortcut, to);
}

// Adds to `sums` [size, size, in, out] the gradient with respect to the weights, of one image.
template <int kSize, int kStride, int kRows, int kVectors>
void AccumulateBlocks(const float* from, Shape in, const float* gradient, Shape out, float* sums) {
  for (int ky = 0; ky < kSize; ++ky) {
    for (int kx = 0; kx < kSize; ++kx, sums += in.channels * out.channels) {
      for (int k = 0; k < in.channels; k += kRows) {
        for (int c = 0; c < out.channels; c += kVectors * kLanes) {
          Vector sum[kRows][kVectors];
          for (int r = 0; r < kRows; ++r) {
            for (int v = 0; v < kVectors; ++v) sum[r][v] = Load(sums + (k + r) * out.channels + c + v * kLanes);
          }
          for (int y = 0; y < out.height; ++y) {
            const float* pixel = from + in.At(y * kStride - kSize / 2 + ky, kx - kSize / 2) + k;
            const float* back = gradient + out.At(y, 0) + c;
            for (int x = 0; x < out.width; ++x, pixel += kStride * in.channels, back += out.channels) {
#pragma GCC unroll 16
              for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
                for (int v = 0; v < kVectors; ++v) sum[r][v] += Load(back + v * kLanes) * pixel[r];
              }
            }
          }
          for (int r = 0; r < kRows; ++r) {
            for (int v = 0; v < kVectors; ++v) Store(sums + (k + r) * out.channels + c + v * kLanes, sum[r][v]);
          }
        }
      }
    }
  }
}

template <int kSize, int kStride>
void AccumulateWeights(const float* from, Shape in, const float* gradient, Shape out, float* sums) {
  const bool narrow = out.channels == kLanes;
  auto* run = narrow ? AccumulateBlocks<kSize, kStride, 1, 1> : AccumulateBlocks<kSize, kStride, 1, 2>;
  if (in.channels % kLanes == 0) {
    run = narrow ? AccumulateBlocks<kSize, kStride, kSums, 1> : AccumulateBlocks<kSize, kStride, kSums / 2, 2>;
  } else if (in.channels == 3) {
    run = narrow ? AccumulateBlocks<kSize, kStride, 3, 1> : AccumulateBlocks<kSize, kStride, 3, 2>;
  }
  run(from, in, gradient, out, sums);
}

// ---- Minimal filtering: a tile of 4x4 outputs from 6x6 products a pair of channels (Lavin and Gray 2016).

class Winograd {
 public:
  static constexpr int kTile = 4, kSide = 6, kPositions = kSide * kSide;
  static constexpr int kBlock = 16;  // tiles that are multiplied together
  static constexpr int kSpan = 2;    // blocks that share weights, where those are not transformed all at once

  static bool Fits(Shape shape) { return shape.height % kTile == 0 && shape.width % kTile == 0; }

  // Numbers of working memory.
  static std::size_t Scratch(int channels) {
    const std::size_t filters = channels * Width(channels) + kLanes, tiles = Step(channels);
    return kPositions * std::max(filters + Step(Width(channels)) + kSpan * tiles, 2 * tiles);
  }

  // The same layer of 16, 32 or 64 channels for `count` images that lie one after another, with a border of 1 before it.
  static void Run(const Layer& layer, const float* from, Shape in, int count, Shape out, const float* shortcut,
                  float* to, float* scratch) {
    auto* run = in.channels == 16 ? RunOf<16> : in.channels == 32 ? RunOf<32> : RunOf<64>;
    run(layer, from, in, count, out, shortcut, to, scratch);
  }

  // Adds to `sums` [36, in, out] the gradient with respect to the transformed weights: the adjoint of `Run`.
  static void Accumulate(const float* from, Shape in, int count, const float* gradient, Shape out, float* sums,
                         float* scratch) {
    auto* run = in.channels == 16 ? AccumulateOf<16> : in.channels == 32 ? AccumulateOf<32> : AccumulateOf<64>;
    run(from, in, count, gradient, out, sums, scratch);
  }

  // The gradient with respect to weights [3, 3, in, out] from that of the transformed ones: G' s G.
  static void GatherWeights(const float* sums, int channels, float* to) {
    for (int at = 0; at < channels * channels; at += kLanes) {
      Vector half[3][kSide];
      for (int x = 0; x < kSide; ++x) {
        Vector column[kSide], result[3];
        for (int y = 0; y < kSide; ++y) column[y] = Load(sums + (y * kSide + x) * channels * channels + at);
        Narrow(column, result);
        for (int y = 0; y < 3; ++y) half[y][x] = result[y];
      }
      for (int y = 0; y < 3; ++y) {
        Vector result[3];
        Narrow(half[y], result);
        for (int x = 0; x < 3; ++x) Store(to + (y * 3 + x) * channels * channels + at, result[x]);
      }
    }
  }

 private:
  // Output channels that are computed together.
  static constexpr int Width(int channels) { return std::min(channels, 2 * kLanes); }
  // Numbers from one position to the next of a block: never a multiple of the period of a cache's sets.
  static constexpr int Step(int channels) { return kBlock * channels + kLanes; }

  // Weights are transformed for some output channels and tiles at a time: then they lie in the cache, where four times
  // the memory would have to stream from farther away.
  template <int kChannels>
  static void RunOf(const Layer& layer, const float* from, Shape in, int count, Shape out, const float* shortcut,
                    float* to, float* scratch) {
    constexpr int kWidth = Width(kChannels), kStep = Step(kChannels), kProducts = Step(kWidth);
    constexpr int kFilters = kChannels * kWidth + kLanes;
    // Where all channels are computed at once, products take the place of the tiles that they are made of.
    constexpr bool kAtOnce = kWidth == kChannels;
    const int all = count * Tiles(in), span = kAtOnce ? all : kSpan * kBlock;
    float* filters = scratch;
    float* products = filters + kPositions * kFilters;
    float* transformed = kAtOnce ? products : products + kPositions * kProducts;
    for (int start = 0; start < all; start += span) {
      const int end = std::min(start + span, all);
      for (int c = 0; c < kChannels; c += kWidth) {
        TransformWeights<kChannels>(layer.weights + c, filters);
        float* tiles = transformed;
        for (int first = start; first < end; first += kBlock) {
          const int block = std::min(kBlock, end - first);  // what lies behind it in a block is never read
          if (c == 0) {
            for (int t = 0; t < block; ++t) {
              Transform<kChannels>(from + Corner(in, first + t), in.Row(), tiles + t * kChannels);
            }
          }
          for (int p = 0; p < kPositions; ++p) {
            Multiply<kChannels>(tiles + p * kStep, filters + p * kFilters, products + p * kProducts, block);
          }
          for (int t = 0; t < block; ++t) {
            const std::ptrdiff_t at = First(out, first + t) + c;
            Gather<kChannels>(layer, c, products + t * kWidth, out.Row(), shortcut ? shortcut + at : nullptr, to + at);
          }
          if (!kAtOnce) tiles += kPositions * kStep;  // they are needed again
        }
      }
    }
  }

  template <int kChannels>
  static void AccumulateOf(const float* from, Shape in, int count, const float* gradient, Shape out, float* sums,
                         float* scratch) {
    constexpr int kStep = Step(kChannels);
    float* transformed = scratch;
    float* spread = scratch + kPositions * kStep;
    for (int first = 0; first < count * Tiles(in); first += kBlock) {
      const int block = std::min(kBlock, count * Tiles(in) - first);
      for (int t = 0; t < block; ++t) {
        Transform<kChannels>(from + Corner(in, first + t), in.Row(), transformed + t * kChannels);
        Spread<kChannels>(gradient + First(out, first + t), out.Row(), spread + t * kChannels);
      }
      for (int p = 0; p < kPositions; ++p) {
        AddProducts<kChannels>(transformed + p * kStep, spread + p * kStep, block, sums + p * kChannels * kChannels);
      }
    }
  }

  static int Tiles(Shape shape) { return shape.width / kTile * (shape.height / kTile); }

  // Where the tile of that number, counted through all images, has its first pixel, and the window that it needs.
  static std::ptrdiff_t First(Shape shape, int number) {
    const int across = shape.width / kTile, tile = number % Tiles(shape);
    return number / Tiles(shape) * shape.Size() + shape.At(tile / across * kTile, tile % across * kTile);
  }
  static std::ptrdiff_t Corner(Shape shape, int number) { return First(shape, number) - shape.Row() - shape.channels; }

  static void Widen(const Vector (&g)[3], Vector (&u)[kSide]) {
    const Vector a = g[0] + g[2], b = g[0] + 4.0f * g[2];
    u[0] = g[0] * 0.25f;
    u[1] = (a + g[1]) * (-1.0f / 6.0f);
    u[2] = (a - g[1]) * (-1.0f / 6.0f);
    u[3] = (b + 2.0f * g[1]) * (1.0f / 24.0f);
    u[4] = (b - 2.0f * g[1]) * (1.0f / 24.0f);
    u[5] = g[2];
  }

  static void Narrow(const Vector (&u)[kSide], Vector (&g)[3]) {
    const Vector a = u[1] + u[2], b = u[1] - u[2], c = u[3] + u[4], e = u[3] - u[4];
    g[0] = u[0] / 4.0f - a / 6.0f + c / 24.0f;
    g[1] = e / 12.0f - b / 6.0f;
    g[2] = c / 6.0f - a / 6.0f + u[5];
  }

  static void Input(const Vector (&d)[kSide], Vector (&v)[kSide]) {
    const Vector a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    v[0] = 4.0f * d[0] + (d[4] - 5.0f * d[2]);
    v[1] = a + b;
    v[2] = a - b;
    v[3] = c + e;
    v[4] = c - e;
    v[5] = 4.0f * d[1] + (d[5] - 5.0f * d[3]);
  }

  static void Output(const Vector (&m)[kSide], Vector (&y)[kTile]) {
    const Vector a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = b + 2.0f * e;
    y[2] = a + 4.0f * c;
    y[3] = b + 8.0f * e + m[5];
  }

  static void OutputAdjoint(const Vector (&y)[kTile], Vector (&m)[kSide]) {
    const Vector a = y[0] + y[2], b = y[1] + y[3], c = y[0] + 4.0f * y[2], e = 2.0f * y[1] + 8.0f * y[3];
    m[0] = y[0];
    m[1] = a + b;
    m[2] = a - b;
    m[3] = c + e;
    m[4] = c - e;
    m[5] = y[3];
  }

  // Weights [3, 3, in, out] of some output channels: G g G', [36, in, width].
  template <int kChannels>
  static void TransformWeights(const float* weights, float* to) {
    constexpr int kWidth = Width(kChannels), kFilters = kChannels * kWidth + kLanes;
    for (int k = 0; k < kChannels; ++k) {
      for (int c = 0; c < kWidth; c += kLanes) {
        Vector half[3][kSide];
#pragma GCC unroll 3
        for (int y = 0; y < 3; ++y) {
          Vector taps[3];
#pragma GCC unroll 3
          for (int x = 0; x < 3; ++x) taps[x] = Load(weights + ((y * 3 + x) * kChannels + k) * kChannels + c);
          Widen(taps, half[y]);
        }
#pragma GCC unroll 6
        for (int x = 0; x < kSide; ++x) {
          const Vector column[3] = {half[0][x], half[1][x], half[2][x]};
          Vector result[kSide];
          Widen(column, result);
#pragma GCC unroll 6
          for (int y = 0; y < kSide; ++y) Store(to + (y * kSide + x) * kFilters + k * kWidth + c, result[y]);
        }
      }
    }
  }

  template <int kChannels>
  static void Transform(const float* from, int row, float* to) {
    for (int c = 0; c < kChannels; c += kLanes) {
      Vector half[kSide][kSide];
#pragma GCC unroll 6
      for (int y = 0; y < kSide; ++y) {
        Vector pixels[kSide];
#pragma GCC unroll 6
        for (int x = 0; x < kSide; ++x) pixels[x] = Load(from + y * row + x * kChannels + c);
        Input(pixels, half[y]);
      }
#pragma GCC unroll 6
      for (int x = 0; x < kSide; ++x) {
        Vector column[kSide], result[kSide];
#pragma GCC unroll 6
        for (int y = 0; y < kSide; ++y) column[y] = half[y][x];
        Input(column, result);
#pragma GCC unroll 6
        for (int y = 0; y < kSide; ++y) Store(to + (y * kSide + x) * Step(kChannels) + c, result[y]);
      }
    }
  }

  // The adjoint of `Gather`: 6x6 numbers a channel from a tile of 4x4.
  template <int kChannels>
  static void Spread(const float* from, int row, float* to) {
    for (int c = 0; c < kChannels; c += kLanes) {
      Vector half[kTile][kSide];
#pragma GCC unroll 4
      for (int y = 0; y < kTile; ++y) {
        Vector pixels[kTile];
#pragma GCC unroll 4
        for (int x = 0; x < kTile; ++x) pixels[x] = Load(from + y * row + x * kChannels + c);
        OutputAdjoint(pixels, half[y]);
      }
#pragma GCC unroll 6
      for (int x = 0; x < kSide; ++x) {
        Vector column[kTile], result[kSide];
#pragma GCC unroll 4
        for (int y = 0; y < kTile; ++y) column[y] = half[y][x];
        OutputAdjoint(column, result);
#pragma GCC unroll 6
        for (int y = 0; y < kSide; ++y) Store(to + (y * kSide + x) * Step(kChannels) + c, result[y]);
      }
    }
  }

  template <int kChannels>
  static void AddProducts(const float* tiles, const float* gradients, int block, float* sums) {
    constexpr int kVectors = kChannels == kLanes ? 1 : 2;
    constexpr int kRows = kSums / kVectors;
    for (int k = 0; k < kChannels; k += kRows) {
      for (int c = 0; c < kChannels; c += kVectors * kLanes) {
        Vector sum[kRows][kVectors];
        for (int r = 0; r < kRows; ++r) {
          for (int v = 0; v < kVectors; ++v) sum[r][v] = Load(sums + (k + r) * kChannels + c + v * kLanes);
        }
        for (int t = 0; t < block; ++t) {
#pragma GCC unroll 16
          for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) {
              sum[r][v] += Load(gradients + t * kChannels + c + v * kLanes) * tiles[t * kChannels + k + r];
            }
          }
        }
        for (int r = 0; r < kRows; ++r) {
          for (int v = 0; v < kVectors; ++v) Store(sums + (k + r) * kChannels + c + v * kLanes, sum[r][v]);
        }
      }
    }
  }

  // [block, channels] x [channels, width].
  template <int kChannels>
  static void Multiply(const float* tiles, const float* weights, float* products, int block) {
    constexpr int kVectors = Width(kChannels) / kLanes, kRows = kSums / kVectors;
    static_assert(kBlock % kRows == 0);
    for (int t = 0; t < block; t += kRows, tiles += kRows * kChannels) {
      Vector sum[kRows][kVectors] = {};
#pragma GCC unroll 16
      for (int k = 0; k < kChannels; ++k) {
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) {
            sum[r][v] += Load(weights + (k * kVectors + v) * kLanes) * tiles[r * kChannels + k];
          }
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) Store(products + ((t + r) * kVectors + v) * kLanes, sum[r][v]);
      }
    }
  }

  template <int kChannels>
  static void Gather(const Layer& layer, int channel, const float* products, int row, const float* shortcut, float* to) {
    for (int c = 0; c < Width(kChannels); c += kLanes) {
      const Vector bias = Bias(layer, channel + c);
      Vector half[kTile][kSide];
#pragma GCC unroll 6
      for (int x = 0; x < kSide; ++x) {
        Vector column[kSide], result[kTile];
#pragma GCC unroll 6
        for (int y = 0; y < kSide; ++y) column[y] = Load(products + (y * kSide + x) * Step(Width(kChannels)) + c);
        if (x == 1) column[1] += bias;  // the product that every output contains once
        Output(column, result);
#pragma GCC unroll 4
        for (int y = 0; y < kTile; ++y) half[y][x] = result[y];
      }
#pragma GCC unroll 4
      for (int y = 0; y < kTile; ++y) {
        Vector result[kTile];
        Output(half[y], result);
#pragma GCC unroll 4
        for (int x = 0; x < kTile; ++x) {
          const std::ptrdiff_t at = y * row + x * kChannels + c;
          Finish(layer, result[x], shortcut ? shortcut + at : nullptr, to + at);
        }
      }
    }
  }
};

}  // namespace idrc
