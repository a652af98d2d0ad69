// Convolutions of bfloat16 images by tiles: how images lie, what a tile reads, how weights are packed.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "amx.h"
#include "tensor.h"

#if defined(IDRC_HAS_AMX)

namespace idrc {

struct ReleaseHalves {
  void operator()(Half* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

using Halves = std::unique_ptr<Half[], ReleaseHalves>;

inline Halves ZeroHalves(std::size_t size) {
  Halves memory(static_cast<Half*>(::operator new[](size * sizeof(Half), std::align_val_t{64})));
  std::memset(memory.get(), 0, size * sizeof(Half));
  return memory;
}

// Images side by side, so that a row of pixels fills tiles: a place is a pixel of one image. Zeros around them, and behind
// them for the tiles that read on.
struct Field {
  int height, width, channels, images;

  // As many images as it takes.
  static Field Of(const Shape& shape) {
    return {shape.height, shape.width, shape.channels, shape.width % kTile == 0 ? 1 : 2};
  }
  static bool Fits(const Shape& shape) { return shape.width % (shape.channels == kNarrow ? kTile : kTile / 2) == 0; }

  int Places() const { return width * images; }
  int Tiles() const { return Places() / kTile * height; }
  std::ptrdiff_t Pixel() const { return static_cast<std::ptrdiff_t>(images) * channels; }
  std::ptrdiff_t Row() const { return (width + 2) * Pixel(); }
  std::ptrdiff_t Size() const { return (height + 2) * Row() + kTileDepth; }
  std::ptrdiff_t At(int y, int x, int image = 0) const { return (y + 1) * Row() + (x + 1) * Pixel() + image * channels; }
};

// What a tile reads: where its first row begins, from the place of its first sum, and which rows of the weights
// [size * size * in, out] its 32 numbers are multiplied with, -1 for none.
struct Piece {
  std::ptrdiff_t at;
  int rows[kTileDepth];
};

// `count` rows of weights from `first`, no more than a tile has.
inline Piece PieceOf(std::ptrdiff_t at, int first, int count) {
  Piece piece{at, {}};
  for (int k = 0; k < kTileDepth; ++k) piece.rows[k] = k < count ? first + k : -1;
  return piece;
}

// Two taps of 16 channels that lie side by side.
inline Piece PieceOfTwo(std::ptrdiff_t at, int tap, int other) {
  Piece piece{at, {}};
  for (int k = 0; k < kTileDepth; ++k) piece.rows[k] = (k < kNarrow ? tap : other) * kNarrow + k % kNarrow;
  return piece;
}

inline void AddTap(std::ptrdiff_t at, int tap, int channels, std::vector<Piece>* pieces) {
  for (int c = 0; c < channels; c += kTileDepth) {
    pieces->push_back(PieceOf(at + c, tap * channels + c, std::min(channels - c, kTileDepth)));
  }
}

// Of a window of 3x3 in a field that fits.
inline std::vector<Piece> SquarePieces(const Field& field) {
  std::vector<Piece> pieces;
  for (int ky = 0; ky < 3; ++ky) {
    const std::ptrdiff_t row = (ky - 1) * field.Row();
    if (field.channels == kNarrow) {  // one image a field
      pieces.push_back(PieceOfTwo(row - field.Pixel(), 3 * ky, 3 * ky + 1));
      AddTap(row + field.Pixel(), 3 * ky + 2, kNarrow, &pieces);
      continue;
    }
    for (int kx = 0; kx < 3; ++kx) AddTap(row + (kx - 1) * field.Pixel(), 3 * ky + kx, field.channels, &pieces);
  }
  return pieces;
}

// Packed weights: [columns / 16, pieces, 16, 16, 2].
inline std::size_t PackedTiles(std::size_t pieces, int columns) { return pieces * kTileDepth * columns; }

inline void PackTiles(const float* weights, int columns, const std::vector<Piece>& pieces, Half* to) {
  for (int first = 0; first < columns; first += kTile) {
    for (const Piece& piece : pieces) {
      for (int k = 0; k < kTileDepth; ++k) {
        Half* row = to + k / 2 * kTileDepth + k % 2;
        const float* from = weights + static_cast<std::ptrdiff_t>(piece.rows[k]) * columns + first;
        for (int c = 0; c < kTile; ++c) row[2 * c] = piece.rows[k] < 0 ? Half{0} : ToHalf(from[c]);
      }
      to += kTileDepth * kTile;
    }
  }
}

// Sums [kRows, kColumns, 16, 16] of kRows tiles of places, that begin at `left` and whose places lie `step` apart, and
// kColumns times 16 columns of packed weights; `between` is called after each piece.
template <int kRows, int kColumns, class Between>
void MultiplyTiles(const std::vector<std::ptrdiff_t>& pieces, const Half* packed, int column, const Half* const* left,
                   std::ptrdiff_t step, float* sums, const Between& between) {
  static_assert((kRows == 4 && kColumns == 1) || (kRows <= 2 && kColumns == 2));
  const std::ptrdiff_t bytes = step * sizeof(Half), tile = kTileDepth * kTile;
  const Half* right = packed + column / kTile * static_cast<std::ptrdiff_t>(pieces.size()) * tile;
  const Half* other = right + static_cast<std::ptrdiff_t>(pieces.size()) * tile;
  Amx::Clear<0>();
  Amx::Clear<1>();
  Amx::Clear<2>();
  Amx::Clear<3>();
  for (const std::ptrdiff_t at : pieces) {
    Amx::Read<6>(right, 64);
    Amx::Read<4>(left[0] + at, bytes);
    Amx::Add<0, 4, 6>();
    if constexpr (kColumns == 2) {
      Amx::Read<7>(other, 64);
      Amx::Add<1, 4, 7>();
      if constexpr (kRows == 2) {
        Amx::Read<5>(left[1] + at, bytes);
        Amx::Add<2, 5, 6>();
        Amx::Add<3, 5, 7>();
      }
    } else {
      Amx::Read<5>(left[1] + at, bytes);
      Amx::Add<1, 5, 6>();
      Amx::Read<4>(left[2] + at, bytes);
      Amx::Add<2, 4, 6>();
      Amx::Read<5>(left[3] + at, bytes);
      Amx::Add<3, 5, 6>();
    }
    right += tile;
    other += tile;
    between();
  }
  constexpr int kSize = kTile * kTile;
  Amx::Write<0>(sums);
  Amx::Write<1>(sums + kSize);
  if constexpr (kRows * kColumns == 4) {
    Amx::Write<2>(sums + 2 * kSize);
    Amx::Write<3>(sums + 3 * kSize);
  }
}

}  // namespace idrc

#endif
