// The codec of the dialect that FUZZED_DIALECT names: what it reads is JSON and part of the line,
// and it reads what it writes.

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "ipc/dialect.h"
#include "ipc/json.h"

namespace {

using deka::ipc::Codec;
using deka::ipc::Dialect;
using deka::ipc::FrameParts;
using deka::ipc::Line;

constexpr size_t kBytesMax = 300;
constexpr size_t kDepthMax = 20;

void Require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Codec codec(Dialect::FUZZED_DIALECT, kBytesMax, kDepthMax);
  const std::string_view input(reinterpret_cast<const char*>(data), size);

  if (const absl::StatusOr<Line> line = codec.Decode(input); line.ok()) {
    const std::string_view value = line->value;
    Require(value.size() <= kBytesMax);
    Require(!(line->internal && line->handle_announced));
    if (value.empty()) {
      Require(line->handle_announced);
    } else {
      Require(value.data() >= input.data() &&
              value.data() + value.size() <= input.data() + input.size());
      Require(!deka::ipc::CheckJson(value, kDepthMax + 1).has_value());
      Require(deka::ipc::TrimJson(value) == value);
    }
  }

  if (!codec.Check(input).ok()) return 0;
  std::string value(input);
  deka::ipc::BreaksToSpaces(value);
  const FrameParts frame = codec.Encode(value);
  const std::string written = std::string(frame.prefix).append(frame.value).append(frame.suffix);
  Require(written.find('\n') == written.size() - 1);
  const absl::StatusOr<Line> line =
      codec.Decode(std::string_view(written).substr(0, written.size() - 1));
  Require(line.ok() && !line->handle_announced);
  Require(line->value == deka::ipc::TrimJson(value));
  Require(codec.dialect() == Dialect::kNode || !line->internal);
  return 0;
}
