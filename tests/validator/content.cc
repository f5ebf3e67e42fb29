#include "tests/validator/content.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/message_differencer.h>

#include <cstdlib>
#include <string>
#include <string_view>

#include "tests/validator/facts.h"

namespace deka::validator {
namespace {

using google::protobuf::Value;

std::optional<Value> Parse(std::string_view json) {
  Value value;
  if (!google::protobuf::util::JsonStringToMessage({json.data(), json.size()}, &value).ok()) {
    return std::nullopt;
  }
  return value;
}

std::string Unescape(std::string_view token) {
  std::string text;
  for (size_t i = 0; i < token.size(); ++i) {
    if (token[i] == '~' && i + 1 < token.size()) {
      text += token[++i] == '1' ? '/' : '~';
    } else {
      text += token[i];
    }
  }
  return text;
}

// What stands at a JSON Pointer; null if nothing does.
const Value* At(const Value& value, std::string_view pointer) {
  const Value* at = &value;
  while (!pointer.empty()) {
    pointer.remove_prefix(1);
    const size_t end = std::min(pointer.find('/'), pointer.size());
    const std::string token = Unescape(pointer.substr(0, end));
    pointer.remove_prefix(end);
    if (at->has_struct_value()) {
      const auto& fields = at->struct_value().fields();
      const auto found = fields.find(token);
      if (found == fields.end()) return nullptr;
      at = &found->second;
    } else if (at->has_list_value()) {
      const bool is_index = !token.empty() && token.find_first_not_of("0123456789") == token.npos &&
                            (token == "0" || token[0] != '0');
      const int index = std::atoi(token.c_str());
      if (!is_index || index >= at->list_value().values_size()) return nullptr;
      at = &at->list_value().values(index);
    } else {
      return nullptr;
    }
  }
  return at;
}

}  // namespace

std::optional<bool> ContentFits(const v1::Event& event, const v1::Observation& observation) {
  if (!event.has_from_child() && !event.has_to_child()) return true;
  if (static_cast<int64_t>(event.json().size()) != WholePayloadBytes(event)) return std::nullopt;
  const std::optional<Value> value = Parse(event.json());
  if (!value) return std::nullopt;
  for (const v1::ContentFilter& condition : observation.where()) {
    const Value* const at = At(*value, condition.pointer());
    if (at == nullptr) return false;
    if (!condition.has_equals()) continue;
    const std::optional<Value> wanted = Parse(condition.equals());
    if (!wanted) return std::nullopt;
    if (!google::protobuf::util::MessageDifferencer::Equals(*at, *wanted)) return false;
  }
  return true;
}

}  // namespace deka::validator
