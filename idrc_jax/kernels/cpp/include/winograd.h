// 3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3): a tile of 4x4 outputs from 6x6 products a pair of
// channels, where the definition needs 144 (Lavin and Gray 2016).

#pragma once

#include <algorithm>
#include <cstddef>

#include "winograd_4x4.h"
#include "tensor.h"

namespace idrc {

class Winograd {
 public:
  static constexpr int kTile = 4, kSide = 6, kPositions = kSide * kSide;
  // Tiles that are multiplied together: a multiple of the rows of sums.
  static constexpr int kBlock = kLanes == 16 ? 16 : 12;
  static constexpr int kSpan = 2;  // blocks that share weights where those are not transformed all at once, or sums

  static bool Fits(Shape shape) { return shape.height % kTile == 0 && shape.width % kTile == 0; }

  // Numbers of working memory for so many channels before and after.
  static std::size_t Scratch(int in, int out) {
    const std::size_t filters = in * Width(out) + kPadding;
    return kPositions * (filters + Step(Width(out)) + kSpan * Step(in));
  }

  // The same layer, of channels that are multiples of 16, for `count` images that lie one after another, with a border
  // of 1 before it.
  static void Run(const Layer& layer, const float* from, Shape in, int count, Shape out, const float* shortcut,
                  float* to, float* scratch) {
    auto* run = Width(out.channels) == kNarrow ? RunOf<kNarrow> : RunOf<kWide>;
    run(layer, from, in, count, out, shortcut, to, scratch);
  }

  // Numbers of working memory to accumulate gradients of so many channels before and after.
  static std::size_t GradientScratch(int in, int out) { return kPositions * kSpan * (Step(in) + Step(out)); }

  // Adds to `sums` [36, in, width] the gradient with respect to the transformed weights of `width` channels, from that of
  // the results, where it has the first of them: the adjoint of `Run`.
  static void Accumulate(const float* from, Shape in, int count, const float* gradient, Shape out, int width,
                         float* sums, float* scratch) {
    const int step = Step(in.channels), spread_step = Step(width), matrix = in.channels * width;
    float* transformed = scratch;
    float* spread = scratch + kPositions * kSpan * step;
    auto* add = Width(width) == kNarrow ? AddProducts<kNarrow> : AddProducts<kWide>;
    const int all = count * Tiles(in);
    for (int first = 0; first < all; first += kSpan * kBlock) {
      const int tiles = std::min(kSpan * kBlock, all - first);
      for (int t = 0; t < tiles; ++t) {
        const int block = t / kBlock * kPositions, row = t % kBlock * kPanel;
        Transform(from + Corner(in, first + t), in.Row(), in.channels, transformed + block * step + row);
        Spread(gradient + First(out, first + t), out, width, spread + block * spread_step + row);
      }
      for (int p = 0; p < kPositions; ++p) {
        add(transformed + p * step, in.channels, spread + p * spread_step, width, tiles, sums + p * matrix);
      }
    }
  }

  // The gradient with respect to weights [3, 3, in, out], of whose channels `to` is the first of `width`, from that of
  // the transformed ones: G' s G.
  static void GatherWeights(const float* sums, int in, int width, int out, float* to) {
    const std::ptrdiff_t matrix = static_cast<std::ptrdiff_t>(in) * width;
    for (int k = 0; k < in; ++k) {
      for (int c = 0; c < width; c += kLanes) {
        Separable<kSide, 3>(
            Narrow, [&](int y, int x) { return Load(sums + (y * kSide + x) * matrix + k * width + c); },
            [&](int y, int x, Vector value) { Store(to + ((y * 3 + x) * in + k) * out + c, value); });
      }
    }
  }

 protected:
  // A position of a block holds all tiles' channels 0 .. 15, then all tiles' channels 16 .. 31, and so on: so rows of
  // products lie a constant apart, whatever the channels.
  static constexpr int kPanel = 16, kPanelSize = kBlock * kPanel;
  // Numbers that keep the positions of a block off the period of a cache's sets.
  static constexpr int kPadding = 16;

  // Output channels that are computed together.
  static constexpr int Width(int channels) { return channels % kWide == 0 ? kWide : kNarrow; }
  // Numbers from one position to the next of a block.
  static constexpr int Step(int channels) { return kBlock * channels + kPadding; }

  // Weights are transformed for some output channels and tiles at a time: then they lie in the cache, where four times
  // the memory would have to stream from farther away.
  template <int kWidth>
  static void RunOf(const Layer& layer, const float* from, Shape in, int count, Shape out, const float* shortcut,
                    float* to, float* scratch) {
    constexpr int kProducts = Step(kWidth);
    const int channels = in.channels, step = Step(channels), filter = channels * kWidth + kPadding;
    // Where all channels are computed at once, tiles are needed once; as many before as after are overwritten by products.
    const bool at_once = out.channels == kWidth, in_place = at_once && channels == kWidth;
    const int all = count * Tiles(in), span = at_once ? all : kSpan * kBlock;
    float* filters = scratch;
    float* products = filters + kPositions * filter;
    float* transformed = in_place ? products : products + kPositions * kProducts;
    for (int start = 0; start < all; start += span) {
      const int end = std::min(start + span, all);
      for (int c = 0; c < out.channels; c += kWidth) {
        TransformWeights<kWidth>(layer.weights + c, channels, out.channels, filters);
        float* tiles = transformed;
        for (int first = start; first < end; first += kBlock) {
          const int block = std::min(kBlock, end - first);  // products of what lies behind it in a block are never used
          if (c == 0) {
            for (int t = 0; t < block; ++t) {
              Transform(from + Corner(in, first + t), in.Row(), channels, tiles + t * kPanel);
            }
          }
          for (int p = 0; p < kPositions; ++p) {
            Multiply<kWidth>(tiles + p * step, filters + p * filter, channels, block, products + p * kProducts);
          }
          for (int t = 0; t < block; ++t) {
            const std::ptrdiff_t at = First(out, first + t) + c;
            Gather<kWidth>(layer, c, products + t * kPanel, out, shortcut ? shortcut + at : nullptr, to + at);
          }
          if (!at_once) tiles += kPositions * step;  // they are needed again
        }
      }
    }
  }

  // Where a block has a channel of its first tile.
  static constexpr int Place(int channel) { return channel / kPanel * kPanelSize + channel % kPanel; }

  static int Tiles(Shape shape) { return shape.width / kTile * (shape.height / kTile); }

  // Where the tile of that number, counted through all images, has its first pixel, and the window that it needs.
  static std::ptrdiff_t First(Shape shape, int number) {
    const int across = shape.width / kTile, tile = number % Tiles(shape);
    return number / Tiles(shape) * shape.Size() + shape.At(tile / across * kTile, tile % across * kTile);
  }
  static std::ptrdiff_t Corner(Shape shape, int number) { return First(shape, number) - shape.Row() - shape.channels; }

  // ---- Products.

  // [block, channels] x [channels, width].
  template <int kWidth>
  static void Multiply(const float* tiles, const float* weights, int channels, int block, float* products) {
    constexpr int kRows = Tile<kWidth>::kRows;
    static_assert(kBlock % kRows == 0);
    for (int t = 0; t < block; t += kRows) {
      Sums<kRows, Tile<kWidth>::kVectors> sums;
      sums.Clear();
      const float* panel = tiles + t * kPanel;
      const float* filters = weights;
      for (int k = 0; k < channels; k += kPanel, panel += kPanelSize) {
#pragma GCC unroll 16
        for (int i = 0; i < kPanel; ++i, filters += kWidth) sums.Add(panel + i, kPanel, filters);
      }
      sums.Write(products + t * kPanel, kPanel, kPanelSize);
    }
  }

  // sums [in, width] += [tiles, in]' x [tiles, width], of one or more blocks.
  template <int kWidth>
  static void AddProducts(const float* transformed, int in, const float* gradients, int width, int tiles, float* sums) {
    const std::ptrdiff_t next = kPositions * Step(in), next_gradients = kPositions * Step(width);
    for (int k = 0; k < in; k += kPanel, transformed += kPanelSize, sums += kPanel * width) {
      for (int c = 0; c < width; c += kWidth) {
        AddRows<Tile<kWidth>::kRows, Tile<kWidth>::kVectors>(transformed, next, gradients + c * kBlock, next_gradients,
                                                             width, kPanel, tiles, sums + c);
      }
    }
  }

  // `rows` rows of the sums: kRows at a time, the rest by halves of that. Blocks lie `next` numbers apart.
  template <int kRows, int kVectors>
  __attribute__((noinline)) static void AddRows(const float* transformed, std::ptrdiff_t next, const float* gradients,
                                                std::ptrdiff_t next_gradients, int width, int rows, int tiles,
                                                float* sums) {
    for (; rows >= kRows; rows -= kRows, transformed += kRows, sums += kRows * width) {
      Sums<kRows, kVectors> tile;
      tile.Read(sums, width);
      const float *left = transformed, *right = gradients;
      for (int rest = tiles; rest > 0; rest -= kBlock, left += next, right += next_gradients) {
        const int block = std::min(rest, kBlock);
        for (int t = 0; t < block; ++t) tile.Add(left + t * kPanel, 1, right + t * kPanel, kPanelSize);
      }
      tile.Write(sums, width);
    }
    if constexpr (kRows > 1) {
      if (rows > 0) {
        AddRows<kRows / 2, kVectors>(transformed, next, gradients, next_gradients, width, rows, tiles, sums);
      }
    }
  }

  // ---- Transforms. Each is a matrix that is applied to rows and columns: M x M'.

  template <int kIn, int kOut, class Apply, class From, class To>
  static void Separable(const Apply& apply, const From& from, const To& to) {
    Vector half[kIn][kOut];
#pragma GCC unroll 6
    for (int i = 0; i < kIn; ++i) {
      Vector values[kIn];
#pragma GCC unroll 6
      for (int j = 0; j < kIn; ++j) values[j] = from(i, j);
      apply(values, half[i]);
    }
#pragma GCC unroll 6
    for (int j = 0; j < kOut; ++j) {
      Vector values[kIn], results[kOut];
#pragma GCC unroll 6
      for (int i = 0; i < kIn; ++i) values[i] = half[i][j];
      apply(values, results);
#pragma GCC unroll 6
      for (int i = 0; i < kOut; ++i) to(i, j, results[i]);
    }
  }

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

  static void OutputAdjoint(const Vector (&y)[kTile], Vector (&m)[kSide]) {
    const Vector a = y[0] + y[2], b = y[1] + y[3], c = y[0] + 4.0f * y[2], e = 2.0f * y[1] + 8.0f * y[3];
    m[0] = y[0];
    m[1] = a + b;
    m[2] = a - b;
    m[3] = c + e;
    m[4] = c - e;
    m[5] = y[3];
  }

  // Weights [3, 3, in, out] of some output channels: [36, in, width].
  template <int kWidth>
  static void TransformWeights(const float* weights, int in, int out, float* to) {
    const int filter = in * kWidth + kPadding;
    for (int k = 0; k < in; ++k) {
      for (int c = 0; c < kWidth; c += kLanes) {
        Separable<3, kSide>(
            Widen, [&](int y, int x) { return Load(weights + ((y * 3 + x) * in + k) * out + c); },
            [&](int y, int x, Vector value) { Store(to + (y * kSide + x) * filter + k * kWidth + c, value); });
      }
    }
  }

  // 6x6 pixels of all channels to the same number of positions.
  static void Transform(const float* from, int row, int channels, float* to) {
    const int step = Step(channels);
    for (int c = 0; c < channels; c += kLanes) {
      float* at = to + Place(c);
      Separable<kSide, kSide>(
          FourByFour::Input, [&](int y, int x) { return Load(from + y * row + x * channels + c); },
          [&](int y, int x, Vector value) { Store(at + (y * kSide + x) * step, value); });
    }
  }

  // The adjoint of `Gather`: 6x6 numbers a channel from a tile of 4x4.
  static void Spread(const float* from, Shape shape, int width, float* to) {
    const int step = Step(width);
    for (int c = 0; c < width; c += kLanes) {
      float* at = to + Place(c);
      Separable<kTile, kSide>(
          OutputAdjoint, [&](int y, int x) { return Load(from + y * shape.Row() + x * shape.channels + c); },
          [&](int y, int x, Vector value) { Store(at + (y * kSide + x) * step, value); });
    }
  }

  // A tile of 4x4 outputs, columns before rows so that they are stored row by row.
  template <int kWidth>
  static void Gather(const Layer& layer, int channel, const float* products, Shape out, const float* shortcut,
                     float* to) {
    for (int c = 0; c < kWidth; c += kLanes) {
      const Vector bias = Bias(layer, channel + c);
      Separable<kSide, kTile>(
          FourByFour::Output,
          [&](int x, int y) {
            const Vector product = Load(products + (y * kSide + x) * Step(kWidth) + Place(c));
            return x == 1 && y == 1 ? product + bias : product;  // the one that every output contains once
          },
          [&](int x, int y, Vector value) {
            const std::ptrdiff_t at = y * out.Row() + x * out.channels + c;
            Finish(layer, value, shortcut ? shortcut + at : nullptr, to + at);
          });
    }
  }
};

}  // namespace idrc
