// CheckJson against simdjson: both read the same values, but for what simdjson cannot convert.

#include <simdjson.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "ipc/json.h"

namespace {

using deka::ipc::JsonMember;

constexpr size_t kDepthMax = 64;

void Require(bool condition) {
  if (!condition) std::abort();
}

// What simdjson refuses although it is JSON: a number that it cannot convert, a lone surrogate, or
// depth, which it counts otherwise.
bool MayRefuseJson(simdjson::error_code error) {
  return error == simdjson::NUMBER_ERROR || error == simdjson::STRING_ERROR ||
         error == simdjson::DEPTH_ERROR || error == simdjson::TAPE_ERROR;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  JsonMember members[] = {{.key = "cmd"}, {.key = "msg"}};
  const auto error = deka::ipc::CheckJson(json, kDepthMax, members);

  static simdjson::dom::parser parser;
  simdjson::dom::element element;
  const simdjson::error_code simd_error = parser.parse(simdjson::padded_string(json)).get(element);
  if (error.has_value()) {
    Require(error->offset <= size);
    Require(simd_error != simdjson::SUCCESS ||
            error->what.find("deeper") != std::string_view::npos);
    return 0;
  }
  Require(simd_error == simdjson::SUCCESS || MayRefuseJson(simd_error));

  for (const JsonMember& member : members) {
    if (simd_error == simdjson::SUCCESS) {
      simdjson::dom::element value;
      const bool there = element[member.key].get(value) == simdjson::SUCCESS;
      Require(there == !member.value.empty());
    }
    if (member.value.empty()) continue;
    Require(!deka::ipc::CheckJson(member.value, kDepthMax).has_value());
    Require(deka::ipc::TrimJson(member.value) == member.value);
  }

  // One line says the same as many.
  std::string line(json);
  deka::ipc::BreaksToSpaces(line);
  Require(line.find_first_of("\r\n") == std::string::npos);
  Require(!deka::ipc::CheckJson(line, kDepthMax).has_value());

  char buffer[64];
  const auto text = deka::ipc::DecodeJsonString(deka::ipc::TrimJson(json), buffer);
  if (text.has_value()) {
    std::string_view expected;
    if (simd_error == simdjson::SUCCESS) {
      Require(element.get(expected) == simdjson::SUCCESS && expected.starts_with(*text));
      Require(text->size() == expected.size() || text->size() > sizeof(buffer) - 4);
    }
    Require(simdjson::validate_utf8(*text));
  }
  return 0;
}
