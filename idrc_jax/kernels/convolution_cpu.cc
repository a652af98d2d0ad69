// Convolutions of 3x3 and stride 1 that keep the number of channels, and the gradient of their weights: for training.

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "convolution.h"
#include "tasks.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace idrc {
namespace {

constexpr int kGroup = 4;   // images whose copies with a border lie in the cache
constexpr int kShares = 8;  // of a batch: sums are made share by share, so that they do not depend on the threads

template <class Function>
void WithChannels(int channels, const Function& function) {
  if (channels == 16) function(std::integral_constant<int, 16>());
  if (channels == 32) function(std::integral_constant<int, 32>());
  if (channels == 64) function(std::integral_constant<int, 64>());
}

// Images without a border, to be read a few at a time with one.
class Bordered {
 public:
  explicit Bordered(Shape shape) : shape_(shape), copy_(Zeros(kGroup * shape.Size())) {}

  const float* Copy(const float* images, int count) {
    const std::ptrdiff_t row = static_cast<std::ptrdiff_t>(shape_.width) * shape_.channels;
    for (int i = 0; i < count; ++i) {
      for (int y = 0; y < shape_.height; ++y, images += row) {
        std::copy_n(images, row, copy_.get() + i * shape_.Size() + shape_.At(y, 0));
      }
    }
    return copy_.get();
  }

 private:
  Shape shape_;
  Buffer copy_;
};

struct Problem {
  Shape in, out;
  int count, share;
};

// What the arrays say, or nothing where the kernel does not serve.
bool Read(ffi::Span<const std::int64_t> images, ffi::Span<const std::int64_t> others, Problem* problem) {
  if (images.size() != 4 || others.size() != 4) return false;
  const Shape shape{static_cast<int>(images[1]), static_cast<int>(images[2]), static_cast<int>(images[3])};
  const int channels = shape.channels, count = static_cast<int>(images[0]);
  *problem = {shape, {shape.height, shape.width, channels, 0}, count, (count + kShares - 1) / kShares};
  return (channels == 16 || channels == 32 || channels == 64) && Winograd::Fits(shape);
}

const ffi::Error Refusal() {
  return ffi::Error::InvalidArgument("Expected 16, 32 or 64 channels, and sizes that are multiples of 4.");
}

ffi::Error Forward(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> weights,
                   ffi::ResultBuffer<ffi::F32> result) {
  Problem problem;
  if (!Read(images.dimensions(), weights.dimensions(), &problem)) return Refusal();
  const Shape in = problem.in, out = problem.out;
  const int channels = in.channels;
  Buffer transformed = Zeros(static_cast<std::size_t>(Winograd::kPositions) * channels * channels);
  Winograd::TransformWeights(weights.typed_data(), channels, transformed.get());
  const Layer layer{transformed.get(), nullptr, false, false};
  const float* from = images.typed_data();
  float* to = result->typed_data();
  const int count = problem.count;
  WithChannels(channels, [&](auto known) {
    ForEachTask(pool, (count + kGroup - 1) / kGroup, [&] {
      return [&, bordered = Bordered(in), scratch = Zeros(Winograd::Scratch(channels))](int task) mutable {
        const int first = task * kGroup, some = std::min(kGroup, count - first);
        const float* copy = bordered.Copy(from + first * out.Size(), some);
        Winograd::Run<known>(layer, copy, in, some, out, nullptr, to + first * out.Size(), scratch.get());
      };
    });
  });
  return ffi::Error::Success();
}

ffi::Error WeightGradient(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> images, ffi::Buffer<ffi::F32> gradient,
                          ffi::ResultBuffer<ffi::F32> result) {
  Problem problem;
  if (!Read(images.dimensions(), gradient.dimensions(), &problem)) return Refusal();
  const Shape in = problem.in, out = problem.out;
  const int channels = in.channels, count = problem.count;
  const std::size_t size = static_cast<std::size_t>(Winograd::kPositions) * channels * channels;
  Buffer sums = Zeros(kShares * size);
  const float *from = images.typed_data(), *back = gradient.typed_data();
  WithChannels(channels, [&](auto known) {
    ForEachTask(pool, kShares, [&] {
      return [&, bordered = Bordered(in), scratch = Zeros(Winograd::Scratch(channels))](int share) mutable {
        const int end = std::min(count, (share + 1) * problem.share);
        for (int first = share * problem.share; first < end; first += kGroup) {
          const int some = std::min(kGroup, end - first);
          const float* copy = bordered.Copy(from + first * out.Size(), some);
          Winograd::Accumulate<known>(copy, in, some, back + first * out.Size(), out, sums.get() + share * size,
                                      scratch.get());
        }
      };
    });
  });
  for (int share = 1; share < kShares; ++share) {
    for (std::size_t i = 0; i < size; ++i) sums[i] += sums[share * size + i];
  }
  Winograd::GatherWeights(sums.get(), channels, result->typed_data());
  return ffi::Error::Success();
}

}  // namespace
}  // namespace idrc

XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcConvolution, idrc::Forward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(IdrcWeightGradient, idrc::WeightGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
