// Minimal filtering as training needs it: weights are transformed once for many images, what becomes of a result is the
// caller's, and both gradients come of one pass.

#pragma once

#include <algorithm>
#include <cstddef>

#include "winograd.h"

namespace idrc {

// Of layers with as many channels before as after. Results are told to a `finish`, tile by tile and a vector of channels
// at a time: finish.Begin(at, channel), where `at` is the place of the tile's first pixel among images without a border,
// gives an object whose Put(offset from there, value) gets all values of the tile, and whose End() is then called.
// finish.EndBlock() is called now and then, and finish.Step() often, at the same distances: `Steps` times in all.
template <int kChannels>
class TrainingWinograd : private Winograd {
 public:
  using Winograd::Fits;
  using Winograd::kPositions;

  // Numbers of the transformed weights, of the gradient with respect to them, and of working memory.
  static constexpr std::size_t kFilters = kPositions * kChannels * kChannels;
  static constexpr std::size_t kSums = kFilters;
  static constexpr std::size_t Scratch() { return 2 * kPositions * kStep; }

  static int Steps(Shape shape, int count, bool gradients) {
    const int blocks = (count * Tiles(shape) + kBlock - 1) / kBlock;
    return blocks * kPositions * (kChannels / kWidth + (gradients ? 1 : 0));
  }

  // From weights [3, 3, in, out].
  static void Prepare(const float* weights, float* filters) {
    for (int c = 0; c < kChannels; c += kLanes) {
      for (int k = 0; k < kChannels; ++k) {
        float* to = filters + c / kWidth * kPart + k * kWidth + c % kWidth;
        Separable<3, kSide>(
            Widen, [&](int y, int x) { return Load(weights + ((y * 3 + x) * kChannels + k) * kChannels + c); },
            [&](int y, int x, Vector value) { Store(to + (y * kSide + x) * kChannels * kWidth, value); });
      }
    }
  }

  // Convolves `count` images, which have a border.
  template <class Finish>
  static void Run(const float* filters, const float* from, Shape shape, int count, Finish& finish, float* scratch) {
    float* tiles = scratch;
    float* products = scratch + kPositions * kStep;
    for (int first = 0; first < count * Tiles(shape); first += kBlock) {
      const int block = std::min(kBlock, count * Tiles(shape) - first);
      for (int t = 0; t < block; ++t) {
        Transform(from + Corner(shape, first + t), shape.Row(), tiles + t * kChannels);
      }
      MultiplyAndGather(filters, tiles, shape, first, block, products, finish);
      finish.EndBlock();
    }
  }

  // Adds the gradient with respect to the transformed weights to `sums` (if `fresh`, whatever they hold is none), and
  // convolves the results' gradient, which has a border too, with filters made of turned weights.
  template <class Finish>
  static void Gradients(const float* filters, const float* from, const float* gradient, Shape shape, int count,
                        float* sums, bool fresh, Finish& finish, float* scratch) {
    float* tiles = scratch;
    float* spread = scratch + kPositions * kStep;
    for (int first = 0; first < count * Tiles(shape); first += kBlock) {
      const int block = std::min(kBlock, count * Tiles(shape) - first);
      for (int t = 0; t < block; ++t) {
        Transform(from + Corner(shape, first + t), shape.Row(), tiles + t * kChannels);
        Spread(gradient + First(shape, first + t), shape.Row(), spread + t * kChannels);
      }
      for (int p = 0; p < kPositions; ++p) {
        for (int c = 0; c < kChannels; c += kWidth) {
          AddRows<Tile<kWidth>::kRows>(tiles + p * kStep, spread + p * kStep + c, kChannels, block,
                                       fresh && first == 0, sums + p * kChannels * kChannels + c);
        }
        finish.Step();
      }
      for (int t = 0; t < block; ++t) {
        Transform(gradient + Corner(shape, first + t), shape.Row(), tiles + t * kChannels);
      }
      MultiplyAndGather(filters, tiles, shape, first, block, spread, finish);
      finish.EndBlock();
    }
  }

  // The gradient with respect to weights `from` .. `end` - 1 of [in, out], for each of 3x3 taps, from sums `stride` apart.
  static void GatherWeights(const float* sums, int shares, std::size_t stride, int from, int end, float* to) {
    constexpr int kSquare = kChannels * kChannels;
    for (int at = from; at < end; at += kLanes) {
      Separable<kSide, 3>(
          Narrow,
          [&](int y, int x) {
            const float* share = sums + (y * kSide + x) * kSquare + at;
            Vector sum = Load(share);
            for (int s = 1; s < shares; ++s) sum += Load(share + s * stride);
            return sum;
          },
          [&](int y, int x, Vector value) { Store(to + (y * 3 + x) * kSquare + at, value); });
    }
  }

 private:
  static constexpr int kWidth = std::min(kChannels, kWide);  // output channels that are computed together
  static constexpr int kPart = kPositions * kChannels * kWidth;
  // Numbers from one position to the next of a block, off the period of a cache's sets.
  static constexpr int kStep = kBlock * kChannels + 16;

  static void Transform(const float* from, int row, float* to) {
    for (int c = 0; c < kChannels; c += kLanes) {
      Separable<kSide, kSide>(
          FourByFour::Input, [&](int y, int x) { return Load(from + y * row + x * kChannels + c); },
          [&](int y, int x, Vector value) { Store(to + (y * kSide + x) * kStep + c, value); });
    }
  }

  static void Spread(const float* from, int row, float* to) {
    for (int c = 0; c < kChannels; c += kLanes) {
      Separable<kTile, kSide>(
          OutputAdjoint, [&](int y, int x) { return Load(from + y * row + x * kChannels + c); },
          [&](int y, int x, Vector value) { Store(to + (y * kSide + x) * kStep + c, value); });
    }
  }

  template <class Finish>
  static void MultiplyAndGather(const float* filters, const float* tiles, Shape shape, int first, int block,
                                float* products, Finish& finish) {
    const Shape plain{shape.height, shape.width, shape.channels, 0};
    for (int c = 0; c < kChannels; c += kWidth, filters += kPart) {
      for (int p = 0; p < kPositions; ++p) {
        Multiply(tiles + p * kStep, filters + p * kChannels * kWidth, block, products + p * kStep);
        finish.Step();
      }
      for (int t = 0; t < block; ++t) {
        for (int v = 0; v < kWidth; v += kLanes) {
          auto tile = finish.Begin(First(plain, first + t) + c + v, c + v);
          Separable<kSide, kTile>(
              FourByFour::Output, [&](int x, int y) { return Load(products + (y * kSide + x) * kStep + t * kWidth + v); },
              [&](int x, int y, Vector value) { tile.Put(y * plain.Row() + x * kChannels, value); });
          tile.End();
        }
      }
    }
  }

  static void Multiply(const float* tiles, const float* weights, int block, float* products) {
    constexpr int kRows = Tile<kWidth>::kRows;
    static_assert(kBlock % kRows == 0);
    for (int t = 0; t < block; t += kRows) {
      Sums<kRows, Tile<kWidth>::kVectors> sums;
      sums.Clear();
#pragma GCC unroll 8
      for (int k = 0; k < kChannels; ++k) sums.Add(tiles + t * kChannels + k, kChannels, weights + k * kWidth);
      sums.Write(products + t * kWidth, kWidth);
    }
  }

  // sums [rows, channels] += [block, rows]' x [block, width]: kRows rows at a time, the rest by halves of that.
  template <int kRows>
  static void AddRows(const float* tiles, const float* spread, int rows, int block, bool fresh, float* sums) {
    for (; rows >= kRows; rows -= kRows, tiles += kRows, sums += kRows * kChannels) {
      Sums<kRows, Tile<kWidth>::kVectors> tile;
      if (fresh) {
        tile.Clear();
      } else {
        tile.Read(sums, kChannels);
      }
      for (int t = 0; t < block; ++t) tile.Add(tiles + t * kChannels, 1, spread + t * kChannels);
      tile.Write(sums, kChannels);
    }
    if constexpr (kRows > 1) {
      if (rows > 0) AddRows<kRows / 2>(tiles, spread, rows, block, fresh, sums);
    }
  }
};

}  // namespace idrc
