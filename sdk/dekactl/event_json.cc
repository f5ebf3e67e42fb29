#include "sdk/dekactl/event_json.h"

#include <limits>
#include <string_view>
#include <utility>

#include "fmt/format.h"
#include "google/protobuf/util/json_util.h"
#include "ipc/json.h"
#include "sdk/dekactl/cursor_text.h"

namespace deka::dekactl {

using bridge::v1::Cursor;
using bridge::v1::Event;
using bridge::v1::Gap;

namespace {

// Of the whole payload, if it is a message or a line of output; else 0.
int64_t SizeBytes(const Event& event) {
  switch (event.kind_case()) {
    case Event::kFromChild:
      return event.from_child().size_bytes();
    case Event::kToChild:
      return event.to_child().size_bytes();
    case Event::kOutput:
      return event.output().size_bytes();
    default:
      return 0;
  }
}

bool IsCut(const Event& event) {
  constexpr size_t kAnyDepth = std::numeric_limits<size_t>::max();
  const size_t shown = event.json().size() + event.text().size() + event.raw().size();
  return static_cast<int64_t>(shown) < SizeBytes(event) ||
         // Never so from an agent; it must not make the line something that is no JSON.
         (event.has_json() && ipc::CheckJson(event.json(), kAnyDepth).has_value());
}

// `object` and one more member.
std::string WithMember(std::string object, std::string_view key, std::string_view value) {
  object.pop_back();
  return fmt::format("{}{}\"{}\":{}}}", object, object.size() > 1 ? "," : "", key, value);
}

std::string PayloadCut(const Event& event) {
  Event beginning;
  if (event.has_raw()) {
    beginning.set_raw(event.raw());
  } else {
    beginning.set_text(event.has_json() ? event.json() : event.text());
  }
  return WithMember(ToJson(beginning), "sizeBytes", fmt::format("\"{}\"", SizeBytes(event)));
}

}  // namespace

std::string ToJson(const google::protobuf::Message& message) {
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json);
  // Every message of the API has a JSON form unless a time in it is out of range.
  return status.ok()
             ? json
             : fmt::format("{{\"error\":\"no JSON form: {}\"}}", static_cast<int>(status.code()));
}

std::string EventJson(const Event& event) {
  const bool cut = IsCut(event);
  if (!cut && !event.has_json()) {
    return ToJson(event);
  }
  Event head = event;
  if (cut) {
    head.clear_payload();
    return WithMember(ToJson(head), "payloadCut", PayloadCut(event));
  }
  std::string message = std::move(*head.mutable_json());
  head.clear_payload();
  ipc::BreaksToSpaces(message);
  return WithMember(ToJson(head), "message", message);
}

std::string GapJson(const Gap& gap, const Cursor& after) {
  return fmt::format("{{\"gap\":{},\"cursor\":\"{}\"}}", ToJson(gap), CursorText(after));
}

}  // namespace deka::dekactl
