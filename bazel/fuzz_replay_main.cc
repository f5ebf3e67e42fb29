// Runs a fuzz target over inputs that are kept: the empty one, then each file named on the command
// line. Ends with 0 if all of them were run, and with 1 if there were none or one cannot be read;
// a target reports what it finds by ending the process.

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

void Run(const std::string& input) {
  // An exact copy on the heap: the sanitizer sees a read one past the end.
  const std::string exact(input.data(), input.size());
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(exact.data()), exact.size());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s INPUT...: a corpus without inputs tests nothing\n", argv[0]);
    return 1;
  }
  Run("");
  for (int i = 1; i < argc; ++i) {
    std::ifstream file(argv[i], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "%s cannot be read\n", argv[i]);
      return 1;
    }
    // Said before the run, so that the log of a crash ends with the input that caused it.
    std::printf("%s\n", argv[i]);
    std::fflush(stdout);
    Run(std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()));
  }
  std::printf("%d inputs and the empty one\n", argc - 1);
  return 0;
}
