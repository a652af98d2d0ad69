// The convolutions of training by AMX against their definitions, for operands that bfloat16 holds: exits with 1 where
// they differ by more than sums' rounding, with 2 where the steps are other than was said.

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "resnet_training_cpu.cc"

namespace {

// Keeps results, counts steps.
struct Kept {
  float* to;
  int steps = 0;

  struct Part {
    float* to;
    void Put(std::ptrdiff_t at, idrc::Vector value) { idrc::Store(to + at, value); }
    void End() {}
  };
  Part Begin(std::ptrdiff_t at, int) { return {to + at}; }
  void EndBlock() {}
  void Step() { ++steps; }
};

double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  double apart = 0, largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    apart = std::max<double>(apart, std::abs(a[i] - b[i]));
    largest = std::max<double>(largest, std::abs(a[i]));
  }
  return apart / largest;
}

}  // namespace

int main() {
  using namespace idrc;
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  const auto draw = [&] { return FromHalf(ToHalf(normal(generator))); };
  for (const Shape shape : {Shape{8, 32, 16}, Shape{4, 16, 16}, Shape{6, 16, 32}, Shape{5, 8, 32}, Shape{8, 8, 64},
                            Shape{4, 24, 64}}) {
    if (!AmxTraining::Fits(shape)) return 3;
    for (int count = 1; count <= 4; ++count) {
      const Shape plain = Plain(shape);
      const std::size_t weights = 9 * shape.channels * shape.channels;
      std::vector<float> images(count * shape.Size()), back(images.size()), kernel(weights);
      std::vector<float> expected(count * plain.Size()), found(expected.size()), sums(weights), found_sums(weights);
      for (int i = 0; i < count; ++i) {
        for (int y = 0; y < shape.height; ++y) {
          for (int k = 0; k < shape.width * shape.channels; ++k) {
            images[i * shape.Size() + shape.At(y, 0) + k] = draw();
            back[i * shape.Size() + shape.At(y, 0) + k] = draw();
          }
        }
      }
      for (float& weight : kernel) weight = draw();
      const auto convolved = [&](const std::vector<float>& from) {
        for (int i = 0; i < count; ++i) {
          Convolve<3, 1>(Layer{kernel.data(), nullptr, false, false}, from.data() + i * shape.Size(), shape, plain, nullptr,
                         expected.data() + i * plain.Size());
        }
      };
      AmxTraining tiles;
      tiles.Prepare(kernel.data(), shape);
      Kept kept{found.data()};
      convolved(images);
      tiles.Run(images.data(), shape, count, kept);
      if (kept.steps != AmxTraining::Steps(shape, count, false)) return 2;
      if (!(Distance(expected, found) < 1e-5)) return 1;
      kept.steps = 0;
      convolved(back);
      for (const bool fresh : {true, false}) {
        tiles.Gradients(images.data(), back.data(), shape, count, found_sums.data(), fresh, kept);
        for (int i = 0; i < count; ++i) {
          const std::ptrdiff_t at = i * shape.Size();
          AccumulateWeights<3, 1>(images.data() + at, shape, back.data() + at, shape, sums.data());
        }
      }
      if (kept.steps != 2 * AmxTraining::Steps(shape, count, true)) return 2;
      if (!(Distance(expected, found) < 1e-5 && Distance(sums, found_sums) < 1e-5)) return 1;
    }
  }
  return 0;
}
