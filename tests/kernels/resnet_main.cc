// The kernel of kernels/cpp/resnet_cpu.cc as a program, for compilers and processors that JAX is not at hand for:
// resnet_main WEIGHTS IMAGES LOGITS height width channels count classes blocks projection half, files of float32.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "resnet_cpu.cc"

namespace {

std::vector<float> Read(const char* path) {
  std::FILE* file = std::fopen(path, "rb");
  if (!file) std::exit(2);
  std::vector<float> values;
  for (float value; std::fread(&value, sizeof value, 1, file) == 1;) values.push_back(value);
  std::fclose(file);
  return values;
}

}  // namespace

int main(int, char** arguments) {
  if (IdrcSelfTest() != 0) return 3;
  const auto number = [&](int at) { return std::atoi(arguments[at]); };
  const std::vector<float> weights = Read(arguments[1]), images = Read(arguments[2]);
  const idrc::Shape image{number(4), number(5), number(6)};
  const int count = number(7), classes = number(8);
  const idrc::Network network(weights.data(), image, classes, number(9), number(10), number(11));
  std::vector<float> logits(count * classes);
  idrc::ClassifyAll(network, images.data(), count, logits.data(), [](int tasks, const auto& make) {
    auto worker = make();
    for (int task = 0; task < tasks; ++task) worker(task);
  });
  std::FILE* file = std::fopen(arguments[3], "wb");
  std::fwrite(logits.data(), sizeof(float), logits.size(), file);
  return std::fclose(file);
}
