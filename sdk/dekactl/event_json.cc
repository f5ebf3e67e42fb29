#include "sdk/dekactl/event_json.h"

#include <limits>

#include "fmt/format.h"
#include "google/protobuf/util/json_util.h"
#include "ipc/json.h"
#include "sdk/dekactl/cursor_text.h"

namespace deka::dekactl {

using bridge::v1::Cursor;
using bridge::v1::Event;
using bridge::v1::Gap;

std::string ToJson(const google::protobuf::Message& message) {
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json);
  // Every message of the API has a JSON form unless a time in it is out of range.
  return status.ok()
             ? json
             : fmt::format("{{\"error\":\"no JSON form: {}\"}}", static_cast<int>(status.code()));
}

std::string EventJson(const Event& event) {
  constexpr size_t kAnyDepth = std::numeric_limits<size_t>::max();
  if (!event.has_json() || ipc::CheckJson(event.json(), kAnyDepth).has_value()) {
    return ToJson(event);
  }
  Event head = event;
  std::string message = std::move(*head.mutable_json());
  head.clear_payload();
  ipc::BreaksToSpaces(message);
  std::string json = ToJson(head);
  json.pop_back();
  return fmt::format("{}{}\"message\":{}}}", json, json.size() > 1 ? "," : "", message);
}

std::string GapJson(const Gap& gap, const Cursor& after) {
  return fmt::format("{{\"gap\":{},\"cursor\":\"{}\"}}", ToJson(gap), CursorText(after));
}

}  // namespace deka::dekactl
