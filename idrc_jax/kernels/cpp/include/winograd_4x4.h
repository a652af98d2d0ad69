// The transforms of minimal filtering F(4x4, 3x3), 36 products for 16 outputs (Lavin and Gray 2016): each is a matrix that
// is applied to rows and columns.

#pragma once

#include "simd.h"

namespace idrc {

struct FourByFour {
  static constexpr int kIn = 6, kSide = 6, kOut = 4, kBefore = 1;

  static void Input(const Vector (&d)[kIn], Vector (&v)[kSide]) {
    const Vector a = d[4] - 4.0f * d[2], b = d[3] - 4.0f * d[1], c = d[4] - d[2], e = 2.0f * (d[3] - d[1]);
    v[0] = 4.0f * d[0] + (d[4] - 5.0f * d[2]);
    v[1] = a + b;
    v[2] = a - b;
    v[3] = c + e;
    v[4] = c - e;
    v[5] = 4.0f * d[1] + (d[5] - 5.0f * d[3]);
  }

  static void Output(const Vector (&m)[kSide], Vector (&y)[kOut]) {
    const Vector a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
    y[0] = m[0] + a + c;
    y[1] = b + 2.0f * e;
    y[2] = a + 4.0f * c;
    y[3] = b + 8.0f * e + m[5];
  }
};

}  // namespace idrc
