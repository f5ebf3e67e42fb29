#include "sdk/dekactl/event_text.h"

#include <time.h>

#include <algorithm>
#include <functional>

#include "fmt/format.h"
#include "sdk/dekactl/cursor_text.h"
#include "sdk/dekactl/output.h"
#include "sdk/dekactl/words.h"

namespace deka::dekactl {
namespace {

// The widest word of the column: "disconnected".
constexpr size_t kKindWidth = 12;

struct Told {
  std::string_view kind;
  Color color;
  std::string text;
};

std::string ClockTime(const google::protobuf::Timestamp& timestamp) {
  const time_t seconds = timestamp.seconds();
  tm local{};
  localtime_r(&seconds, &local);
  return fmt::format("{:02}:{:02}:{:02}.{:03}", local.tm_hour, local.tm_min, local.tm_sec,
                     timestamp.nanos() / 1'000'000);
}

std::string By(const v1::Sender& sender) {
  return sender.client().empty() ? sender.principal()
                                 : fmt::format("{} ({})", sender.client(), sender.principal());
}

std::string CommandLine(const v1::Child& child) {
  std::string line = child.program();
  for (const std::string& argument : child.args()) {
    line += ' ';
    line += argument;
  }
  return line;
}

// The payload, and how much of it is missing.
std::string Payload(const v1::Event& event, int64_t size_bytes) {
  std::string payload;
  switch (event.payload_case()) {
    case v1::Event::kText:
      payload = event.text();
      break;
    case v1::Event::kJson:
      payload = event.json();
      std::replace(payload.begin(), payload.end(), '\n', ' ');
      std::replace(payload.begin(), payload.end(), '\r', ' ');
      break;
    case v1::Event::kRaw:
      payload = event.raw();
      break;
    case v1::Event::PAYLOAD_NOT_SET:
      break;
  }
  const int64_t missing = size_bytes - static_cast<int64_t>(payload.size());
  if (missing <= 0) {
    return payload;
  }
  return payload.empty() ? fmt::format("({} bytes)", missing)
                         : fmt::format("{}... ({} bytes more)", payload, missing);
}

std::string DisconnectedText(const v1::Disconnected& disconnected) {
  std::string text;
  switch (disconnected.by()) {
    case v1::Disconnected::BY_CALLER:
      text = "by " + By(disconnected.sender());
      break;
    case v1::Disconnected::BY_AGENT:
      text = "by the agent, which is stopping";
      break;
    case v1::Disconnected::BY_FAILURE:
      text = "the socket failed";
      break;
    default:
      text = "by the child";
  }
  return disconnected.message().empty() ? text
                                        : fmt::format("{}: {}", text, disconnected.message());
}

Told Tell(const v1::Event& event) {
  switch (event.kind_case()) {
    case v1::Event::kFromChild:
      return {"from", Color::kGreen, Payload(event, event.from_child().size_bytes())};
    case v1::Event::kToChild:
      return {"to", Color::kCyan, Payload(event, event.to_child().size_bytes())};
    case v1::Event::kOutput: {
      const bool is_error = event.output().stream() == v1::Output::STREAM_STDERR;
      return {is_error ? "stderr" : "stdout", is_error ? Color::kYellow : Color::kNone,
              Payload(event, event.output().size_bytes())};
    }
    case v1::Event::kError: {
      const std::string bytes = Payload(event, event.error().size_bytes());
      return {"error", Color::kRed,
              bytes.empty() ? event.error().message()
                            : fmt::format("{}: {}", bytes, event.error().message())};
    }
    case v1::Event::kUndelivered:
      return {"undelivered", Color::kRed,
              fmt::format("{} of {} bytes were written. {}", event.undelivered().written_bytes(),
                          event.undelivered().frame_bytes(), event.undelivered().message())};
    case v1::Event::kStarted:
      return {"started", Color::kBold,
              fmt::format("pid {}: {}", event.started().child().pid(),
                          CommandLine(event.started().child()))};
    case v1::Event::kSignalled:
      return {"signalled", Color::kMagenta,
              fmt::format("{} by {}", SignalWord(event.signalled().signal()),
                          By(event.signalled().sender()))};
    case v1::Event::kDisconnected:
      return {"disconnected", Color::kMagenta, DisconnectedText(event.disconnected())};
    case v1::Event::kExited:
      return {"exited", Color::kMagenta, ExitWords(event.exited().status())};
    case v1::Event::kClosed:
      return {"closed", Color::kBold, ""};
    case v1::Event::KIND_NOT_SET:
      break;
  }
  return {"unknown", Color::kRed,
          "an event that this dekactl is too old for; tail --json shows it"};
}

std::string Missed(const v1::Gap& gap) {
  std::string events = "some events";
  if (gap.inexact()) {
    events = "an unknown number of events";
  } else if (gap.has_from_child_sequence()) {
    const int64_t count = gap.to_child_sequence() - gap.from_child_sequence() + 1;
    events = fmt::format("{} event{}, {} to {}", count, count == 1 ? "" : "s",
                         gap.from_child_sequence(), gap.to_child_sequence());
  } else {
    events = fmt::format("events up to {}", gap.to_child_sequence());
  }
  switch (gap.reason()) {
    case v1::Gap::REASON_LOG_TURNED_OVER:
      return events + ": the log has turned over";
    case v1::Gap::REASON_CHILD_FORGOTTEN:
      return events + ": the child ended long ago";
    case v1::Gap::REASON_OTHER_EPOCH:
      return events + ": the agent was started anew, and what its log held before is gone";
    case v1::Gap::REASON_RATE:
      return events + ": more in a second than were asked for";
    case v1::Gap::REASON_BLOCK_TIMEOUT:
      return events + ": the child was held back as long as it may be";
    default:
      return events;
  }
}

std::string Row(bool colored, const google::protobuf::Timestamp& time, const std::string& label,
                const Told& told) {
  const std::string kind =
      told.text.empty() ? std::string(told.kind) : fmt::format("{:<{}}", told.kind, kKindWidth);
  std::string row = fmt::format("{} {}  {}", Paint(colored, Color::kDim, ClockTime(time)), label,
                                Paint(colored, told.color, kind));
  return told.text.empty() ? row : fmt::format("{}  {}", row, Printable(told.text));
}

}  // namespace

void EventText::Learn(const v1::Child& child) {
  const std::string id = child.name().substr(child.name().rfind('/') + 1);
  const std::string& name = child.display_name();
  if (!name.empty() && names_.emplace(id, name).second) {
    ++uses_[name];
  }
}

std::string EventText::Line(const v1::Event& event) {
  if (event.has_started()) {
    Learn(event.started().child());
  }
  return Row(colored_, event.time(), Label(event.child()), Tell(event));
}

std::string EventText::Line(const v1::Gap& gap, const v1::Cursor& after,
                            const google::protobuf::Timestamp& now) {
  return Row(
      colored_, now, Label(gap.child()),
      {"missed", Color::kRed,
       fmt::format("{}; --from after:{} goes on behind them", Missed(gap), CursorText(after))});
}

// Padded, in the child's own colour.
std::string EventText::Label(const std::string& id) {
  constexpr Color kColors[] = {Color::kBlue, Color::kMagenta, Color::kCyan, Color::kYellow,
                               Color::kGreen};
  std::string label = id.empty() ? "-" : id;
  if (const auto name = names_.find(id); name != names_.end()) {
    label = uses_[name->second] == 1 ? name->second : fmt::format("{}/{}", name->second, id);
  }
  width_ = std::max(width_, label.size());
  return Paint(colored_, kColors[std::hash<std::string>()(id) % std::size(kColors)],
               fmt::format("{:<{}}", label, width_));
}

}  // namespace deka::dekactl
