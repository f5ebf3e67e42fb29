#include "sdk/dekactl/agent_text.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <string_view>
#include <utility>

#include "fmt/format.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/time_util.h"
#include "sdk/dekactl/event_json.h"
#include "sdk/dekactl/output.h"

namespace deka::dekactl {

namespace v1 = ::deka::bridge::v1;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

namespace {

using std::chrono::milliseconds;

std::string IdOf(const v1::Agent& agent) {
  return agent.name().substr(agent.name().rfind('/') + 1);
}

// Clocks may be set back.
milliseconds Uptime(const v1::Agent& agent, std::chrono::system_clock::time_point now) {
  const milliseconds start(
      google::protobuf::util::TimeUtil::TimestampToMilliseconds(agent.start_time()));
  return std::max(std::chrono::duration_cast<milliseconds>(now.time_since_epoch()) - start,
                  milliseconds(0));
}

// The number of a field that is no message.
int64_t NumberOf(const Message& message, const FieldDescriptor* field) {
  const auto* reflection = message.GetReflection();
  return field->cpp_type() == FieldDescriptor::CPPTYPE_INT32 ? reflection->GetInt32(message, field)
                                                             : reflection->GetInt64(message, field);
}

const Message* NestedIn(const Message& message, const FieldDescriptor* field) {
  return field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE
             ? &message.GetReflection()->GetMessage(message, field)
             : nullptr;
}

// --- For programs. ---

std::string JsonString(const std::string& text) {
  google::protobuf::Value value;
  value.set_string_value(text);
  return ToJson(value);
}

std::string JsonPid(int32_t pid) { return pid == 0 ? "null" : std::to_string(pid); }

// Of a message of numbers, all of them.
std::string JsonNumbers(const Message& message) {
  std::string members;
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = message.GetDescriptor()->field(i);
    const Message* nested = NestedIn(message, field);
    members += fmt::format(
        "{}\"{}\":{}", members.empty() ? "" : ",", field->json_name(),
        nested == nullptr ? std::to_string(NumberOf(message, field)) : JsonNumbers(*nested));
  }
  return fmt::format("{{{}}}", members);
}

// --- For people. ---

using Rows = std::vector<std::pair<std::string, std::string>>;

// In its two largest units.
std::string DurationWords(milliseconds duration) {
  const int64_t seconds = duration.count() / 1000;
  const int64_t minutes = seconds / 60;
  const int64_t hours = minutes / 60;
  if (hours >= 24) {
    return fmt::format("{}d {}h", hours / 24, hours % 24);
  }
  if (hours > 0) {
    return fmt::format("{}h {}m", hours, minutes % 60);
  }
  return minutes > 0 ? fmt::format("{}m {}s", minutes, seconds % 60) : fmt::format("{}s", seconds);
}

std::string PidWord(int32_t pid, bool colored) {
  return pid == 0 ? Paint(colored, Color::kDim, "none") : std::to_string(pid);
}

std::string LimitWords(std::string_view name, int64_t limit) {
  if (name.ends_with("_bytes_max")) {
    for (const auto& [unit, bytes] : {std::pair("MiB", 1 << 20), std::pair("KiB", 1 << 10)}) {
      if (limit >= bytes && limit % bytes == 0) {
        return fmt::format("{} {}", limit / bytes, unit);
      }
    }
    return fmt::format("{} bytes", limit);
  }
  if (name.ends_with("_ms_max")) {
    return limit % 1000 == 0 ? fmt::format("{} s", limit / 1000) : fmt::format("{} ms", limit);
  }
  return std::to_string(limit);
}

// Called as a configuration calls them.
void AddLimits(const Message& limits, const std::string& within, Rows& rows) {
  for (int i = 0; i < limits.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor* field = limits.GetDescriptor()->field(i);
    if (const Message* nested = NestedIn(limits, field); nested != nullptr) {
      AddLimits(*nested, within + field->name() + ".", rows);
    } else {
      rows.emplace_back(within + field->name(), LimitWords(field->name(), NumberOf(limits, field)));
    }
  }
}

// Appends the rows as lines, with their first column in a colour.
void AddLines(const Rows& rows, bool colored, std::vector<std::string>& lines) {
  size_t width = 0;
  for (const auto& [name, what] : rows) {
    width = std::max(width, name.size());
  }
  for (const auto& [name, what] : rows) {
    lines.push_back(Paint(colored, Color::kBold, fmt::format("{:<{}}", name, width)) + "  " + what);
  }
}

}  // namespace

std::vector<std::string> AgentLines(const v1::Agent& agent,
                                    std::chrono::system_clock::time_point now, bool colored) {
  const Rows state = {
      {"agent", Printable(IdOf(agent))},
      {"version", Printable(agent.version())},
      {"pid", std::to_string(agent.pid())},
      {"keeper", agent.degraded() ? Paint(colored, Color::kRed, "ended: degraded")
                                  : PidWord(agent.keeper_pid(), colored)},
      {"spare", PidWord(agent.spare_pid(), colored)},
      {"incarnation", std::to_string(agent.incarnation())},
      {"uptime", DurationWords(Uptime(agent, now))},
      {"children", fmt::format("{}, {} running", agent.children(), agent.running_children())},
      {"observers", std::to_string(agent.observers())},
      {"epoch", std::to_string(agent.epoch())},
      {"head", std::to_string(agent.head())},
  };
  Rows limits;
  AddLimits(agent.limits(), "", limits);
  std::vector<std::string> lines;
  AddLines(state, colored, lines);
  lines.emplace_back();
  AddLines(limits, colored, lines);
  return lines;
}

std::string AgentJson(const v1::Agent& agent, std::chrono::system_clock::time_point now) {
  const int64_t uptime_ms = Uptime(agent, now).count();
  return fmt::format(
      R"({{"agent":{},"version":{},"agentPid":{},"keeperPid":{},"sparePid":{},)"
      R"("incarnation":{},"degraded":{},"uptime":{}.{:03},"epoch":{},"head":{},"observers":{},"children":{},)"
      R"("limits":{}}})",
      JsonString(IdOf(agent)), JsonString(agent.version()), agent.pid(),
      JsonPid(agent.keeper_pid()), JsonPid(agent.spare_pid()), agent.incarnation(),
      agent.degraded(), uptime_ms / 1000, uptime_ms % 1000, agent.epoch(), agent.head(),
      agent.observers(), agent.children(), JsonNumbers(agent.limits()));
}

}  // namespace deka::dekactl
