// JsonMatch on any text: a pointer, a value and a message, one line each. Against simdjson's values
// where it reads them, and against itself: equality goes both ways, and survives another spelling.

#include <simdjson.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "ipc/json.h"
#include "ipc/json_match.h"

namespace {

using deka::ipc::CheckJson;
using deka::ipc::JsonMatch;

constexpr size_t kDepthMax = JsonMatch::kEqualsDepthMax;

void Require(bool condition) {
  if (!condition) std::abort();
}

std::string_view TakeLine(std::string_view& text) {
  const std::string_view line = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(line.size() + 1, text.size()));
  return line;
}

// Whether `pointer`, which is well-formed, leads to something. The last of equal keys counts.
bool Exists(simdjson::dom::element value, std::string_view pointer) {
  while (!pointer.empty()) {
    pointer.remove_prefix(1);
    const std::string_view step = pointer.substr(0, pointer.find('/'));
    pointer.remove_prefix(step.size());
    std::string key;
    for (size_t i = 0; i < step.size(); ++i) {
      key += step[i] == '~' ? (step[++i] == '0' ? '~' : '/') : step[i];
    }
    std::optional<simdjson::dom::element> next;
    simdjson::dom::object object;
    simdjson::dom::array array;
    if (value.get(object) == simdjson::SUCCESS) {
      for (const simdjson::dom::key_value_pair member : object) {
        if (member.key == key) next = member.value;
      }
    } else if (value.get(array) == simdjson::SUCCESS) {
      size_t i = 0;
      for (const simdjson::dom::element element : array) {
        if (std::to_string(i++) == key) next = element;
      }
    }
    if (!next.has_value()) return false;
    value = *next;
  }
  return true;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view json(reinterpret_cast<const char*>(data), size);
  const std::string_view pointer = TakeLine(json);
  const std::string_view equals = TakeLine(json);
  const bool is_json = !CheckJson(json, kDepthMax).has_value();

  const absl::StatusOr<JsonMatch> exists = JsonMatch::Create(pointer, std::nullopt);
  if (exists.ok()) {
    const bool there = exists->Matches(json);
    static simdjson::dom::parser parser;
    simdjson::dom::element value;
    if (is_json && parser.parse(simdjson::padded_string(json)).get(value) == simdjson::SUCCESS) {
      Require(there == Exists(value, pointer));
    }
    const absl::StatusOr<JsonMatch> match = JsonMatch::Create(pointer, equals);
    Require(match.ok() == (!CheckJson(equals, kDepthMax).has_value() &&
                           equals.size() <= JsonMatch::kEqualsBytesMax));
    if (match.ok() && is_json) Require(!match->Matches(json) || there);
    if (match.ok()) match->Matches(json);
  }

  const absl::StatusOr<JsonMatch> a = JsonMatch::Create("", equals);
  const absl::StatusOr<JsonMatch> b = JsonMatch::Create("", json);
  if (a.ok()) Require(a->Matches(equals));
  if (b.ok()) Require(b->Matches(json));
  if (a.ok() && b.ok()) Require(a->Matches(json) == b->Matches(equals));

  // The same in an array, and with the same key before it.
  if (b.ok()) {
    const std::string twice =
        std::string("[{\"k\":").append(equals).append(",\"\\u006b\":").append(json).append("}]");
    if (a.ok() && !CheckJson(twice, kDepthMax).has_value()) {
      Require(JsonMatch::Create("/0/k", json)->Matches(twice));
      Require(JsonMatch::Create("/0/k", equals)->Matches(twice) == a->Matches(json));
    }
  }
  return 0;
}
