// Products with packed weights, tile by tile in registers: matrix products, and convolutions whose windows are laid out
// as rows a few at a time, in the cache. Arrays are float32.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "simd_tmp.h"

namespace idrc {

constexpr int kPanel = 16;       // columns of weights that lie together: a cache line, however wide a vector is
constexpr int kPiece = 64;       // numbers of a row that lie together
constexpr int kRowBytes = 384 << 10;  // of rows that share a pass over the weights: they stay in a core's cache

#if defined(__AVX512F__) && IDRC_VECTOR_BITS >= 512
constexpr int kTileRows = 14, kTilePanels = 2;
#elif IDRC_VECTOR_BITS >= 256
constexpr int kTileRows = 6, kTilePanels = 1;
#elif defined(__ARM_NEON)
constexpr int kTileRows = 6, kTilePanels = 1;
#else
constexpr int kTileRows = 2, kTilePanels = 1;
#endif

// Images float32 [count, height, width, channels], without a border.
struct Images {
  int count, height, width, channels;

  std::ptrdiff_t At(int image, int y, int x) const {
    return ((static_cast<std::ptrdiff_t>(image) * height + y) * width + x) * channels;
  }
};

enum class Activation : std::int64_t { kNone = 0, kRelu = 1, kGelu = 2 };

// What becomes of a row of sums: + bias + shortcut, then the activation.
struct Epilogue {
  const float* bias;      // [columns], or none
  const float* shortcut;  // as the result, or none
  Activation activation;
};

inline int Panels(int columns) { return (columns + kPanel - 1) / kPanel; }
inline std::size_t PackedSize(int depth, int columns) {
  return static_cast<std::size_t>(depth) * Panels(columns) * kPanel;
}

// Rows of numbers for tiles: [tile][piece][row of the tile][kPiece].
class Rows {
 public:
  static std::size_t Size(int rows, int depth) {
    return static_cast<std::size_t>(Tiles(rows)) * kTileRows * Pieces(depth) * kPiece;
  }
  static int Tiles(int rows) { return (rows + kTileRows - 1) / kTileRows; }
  static int Pieces(int depth) { return (depth + kPiece - 1) / kPiece; }
  // Rows that are multiplied together.
  static int Block(int depth) {
    const int rows = kRowBytes / static_cast<int>(sizeof(float)) / depth;
    return std::clamp(rows / kTileRows, 2, 16) * kTileRows;
  }

  Rows(float* memory, int depth) : memory_(memory), depth_(depth) {}

  const float* Tile(int tile) const {
    return memory_ + static_cast<std::size_t>(tile) * kTileRows * Pieces(depth_) * kPiece;
  }

  // Appends numbers to a row, at `at`; zeros without a source.
  void Put(int row, int at, const float* from, int count) {
    float* tile = memory_ + static_cast<std::size_t>(row / kTileRows) * kTileRows * Pieces(depth_) * kPiece +
                  (row % kTileRows) * kPiece;
    while (count > 0) {
      const int offset = at % kPiece, now = std::min(count, kPiece - offset);
      float* to = tile + static_cast<std::size_t>(at / kPiece) * kTileRows * kPiece + offset;
      if (from) {
        std::memcpy(to, from, now * sizeof(float));
        from += now;
      } else {
        std::memset(to, 0, now * sizeof(float));
      }
      at += now;
      count -= now;
    }
  }

 private:
  float* memory_;
  int depth_;
};

// x Phi(x), by a rational approximation of the error function (relative error 2e-9 before rounding).
inline Vector Gelu(Vector x) {
  Vector z = x * 0.70710678f;
  z = z > 3.95f ? Vector{} + 3.95f : z;
  z = z < -3.95f ? Vector{} - 3.95f : z;
  const Vector t = z * z;
  Vector above = t * -1.2967912965677897e-08f + 4.640601673600031e-06f;
  above = above * t + 3.779429825954139e-04f;
  above = above * t + 3.843383165076375e-03f;
  above = above * t + 5.4274894297122955e-02f;
  above = above * t + 0.18516890704631805f;
  above = above * t + 1.128379225730896f;
  Vector below = t * 6.269408913794905e-05f + 1.3040733756497502e-03f;
  below = below * t + 1.5443764626979828e-02f;
  below = below * t + 0.11391106992959976f;
  below = below * t + 0.4974350929260254f;
  below = below * t + 1.0f;
  return 0.5f * x * (1.0f + z * above / below);
}

// `shortcut` may be none.
inline Vector Finished(const Epilogue& epilogue, Vector sum, const float* shortcut) {
  if (shortcut) sum += Load(shortcut);
  if (epilogue.activation == Activation::kRelu) sum = Relu(sum);
  if (epilogue.activation == Activation::kGelu) sum = Gelu(sum);
  return sum;
}

// A window of pixels, and how it moves over an image.
struct Window {
  int height, width, stride_y, stride_x, pad_y, pad_x;

  bool Pointwise() const { return height * width * stride_y * stride_x == 1 && pad_y == 0 && pad_x == 0; }
};

// Pixels `first` .. `first + count - 1` of the result, counted through all images, as rows: their windows of the input.
inline void GatherWindows(const float* from, Images in, Images out, const Window& window, int first, int count,
                          Rows& rows) {
  for (int r = 0; r < count; ++r) {
    const int number = first + r, x = number % out.width, y = number / out.width % out.height;
    if (window.Pointwise()) {
      rows.Put(r, 0, from + static_cast<std::ptrdiff_t>(number) * in.channels, in.channels);
      continue;
    }
    const int image = number / out.width / out.height, top = y * window.stride_y - window.pad_y;
    const int left = x * window.stride_x - window.pad_x;
    const int begin = std::clamp(left, 0, in.width), end = std::clamp(left + window.width, begin, in.width);
    const int across = window.width * in.channels, before = (begin - left) * in.channels;
    const int inside = (end - begin) * in.channels;
    for (int line = 0, at = 0; line < window.height; ++line, at += across) {
      if (top + line < 0 || top + line >= in.height || inside == 0) {
        rows.Put(r, at, nullptr, across);
        continue;
      }
      rows.Put(r, at, nullptr, before);
      rows.Put(r, at + before, from + in.At(image, top + line, begin), inside);
      rows.Put(r, at + before + inside, nullptr, across - before - inside);
    }
  }
}

inline void FinishRow(const Epilogue& epilogue, int column, const float* sums, int width, const float* shortcut,
                      float* to) {
  int i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    const Vector sum = Load(sums + i) + (epilogue.bias ? Load(epilogue.bias + column + i) : Vector{});
    Store(to + i, Finished(epilogue, sum, shortcut ? shortcut + i : nullptr));
  }
  if (i == width) return;
  // The last columns, fewer than a vector holds.
  float padded[3][kLanes] = {};
  std::copy_n(sums + i, width - i, padded[0]);
  if (epilogue.bias) std::copy_n(epilogue.bias + column + i, width - i, padded[1]);
  if (shortcut) std::copy_n(shortcut + i, width - i, padded[2]);
  Store(padded[0], Finished(epilogue, Load(padded[0]) + Load(padded[1]), padded[2]));
  std::copy_n(padded[0], width - i, to + i);
}

// A tile of products: kTileRows rows, 16 * kPanels columns; panels are `step` apart.
template <int kPanels>
inline void MultiplyTile(const float* rows, const float* panels, std::ptrdiff_t step, int depth, float* sums) {
  constexpr int kVectors = kPanel / kLanes;
  Vector sum[kTileRows][kPanels * kVectors] = {};
  for (int k = 0; k < depth; k += kPiece, rows += kTileRows * kPiece) {
    const int pieces = std::min(kPiece, depth - k);
    for (int i = 0; i < pieces; ++i, panels += kPanel) {
      Vector weights[kPanels * kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kPanels * kVectors; ++v) {
        weights[v] = Load(panels + (v / kVectors) * step + (v % kVectors) * kLanes);
      }
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
        for (int v = 0; v < kPanels * kVectors; ++v) sum[r][v] += weights[v] * rows[r * kPiece + i];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kPanels * kVectors; ++v) Store(sums + (r * kPanels * kVectors + v) * kLanes, sum[r][v]);
  }
}

// `count` rows of the result [.., columns].
inline void Multiply(const Rows& rows, int count, int depth, const float* weights, int columns,
                     const Epilogue& epilogue, float* to) {
  const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(depth) * kPanel;
  const int panels = Panels(columns);
  alignas(64) float sums[kTileRows * kTilePanels * kPanel];
  for (int panel = 0; panel < panels; panel += kTilePanels) {
    const int together = std::min(kTilePanels, panels - panel), column = panel * kPanel;
    const int width = std::min(together * kPanel, columns - column);
    for (int tile = 0; tile < Rows::Tiles(count); ++tile) {
      if (together == kTilePanels) {
        MultiplyTile<kTilePanels>(rows.Tile(tile), weights + panel * step, step, depth, sums);
      } else {
        MultiplyTile<1>(rows.Tile(tile), weights + panel * step, step, depth, sums);
      }
      const int first = tile * kTileRows;
      for (int r = 0; r < std::min(kTileRows, count - first); ++r) {
        const std::ptrdiff_t at = static_cast<std::ptrdiff_t>(first + r) * columns + column;
        FinishRow(epilogue, column, sums + r * together * kPanel, width,
                  epilogue.shortcut ? epilogue.shortcut + at : nullptr, to + at);
      }
    }
  }
}

}  // namespace idrc
