#include "ipc/dialect.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "ipc/error.h"
#include "ipc/json.h"

namespace deka::ipc {
namespace {

constexpr std::string_view kEnvelopePrefix = R"({"cmd":"NODE_HANDLE","msg":)";
constexpr std::string_view kEnvelopeSuffix = "}\n";
constexpr std::string_view kNodePrefix = "NODE_";
constexpr std::string_view kHandle = "NODE_HANDLE";
constexpr std::string_view kHandleAck = "NODE_HANDLE_ACK";
constexpr std::string_view kHandleNack = "NODE_HANDLE_NACK";

bool IsString(std::string_view json) { return json.starts_with('"'); }

// The string member `cmd` of a message, as far as Node's own commands go: a longer one may be cut,
// an absent one is empty.
class Command {
 public:
  explicit Command(std::string_view json)
      : text_(IsString(json) && json.find('\\') == std::string_view::npos
                  ? json.substr(1, json.size() - 2)
                  : DecodeJsonString(json, buffer_).value_or("")) {}
  Command(const Command&) = delete;
  Command& operator=(const Command&) = delete;

  std::string_view text() const { return text_; }
  bool internal() const { return text_.starts_with(kNodePrefix) && text_ != kNodePrefix; }

 private:
  char buffer_[32];
  std::string_view text_;
};

absl::Status EnvelopeMissing(std::string_view why) {
  return MakeError(
      Reason::kEnvelopeMissing,
      fmt::format("The line is JSON, but no message of dialect deka, {}<value>}}: {}. Write the "
                  "envelope, or fork the child with dialect node.",
                  kEnvelopePrefix, why));
}

// Whether "NAME=value" is one of those that tell a child of its channel.
bool NamesChannel(std::string_view variable) {
  const std::string_view name = variable.substr(0, variable.find('='));
  return name == "DEKA_IPC_ENABLED" || name == "DEKA_IPC_FD" || name == "NODE_CHANNEL_FD" ||
         name == "NODE_CHANNEL_SERIALIZATION_MODE";
}

}  // namespace

std::string_view DialectName(Dialect dialect) {
  switch (dialect) {
    case Dialect::kDeka:
      return "deka";
    case Dialect::kNode:
      return "node";
  }
  return "";
}

std::optional<Dialect> DialectFromName(std::string_view name) {
  for (const Dialect dialect : {Dialect::kDeka, Dialect::kNode}) {
    if (name == DialectName(dialect)) return dialect;
  }
  return std::nullopt;
}

absl::StatusOr<Line> Codec::Decode(std::string_view line) const {
  JsonMember members[] = {{.key = "cmd"}, {.key = "type"}, {.key = "msg"}};
  const bool deka = dialect_ == Dialect::kDeka;
  const size_t envelope_depth = deka ? 1 : 0;
  if (const std::optional<JsonError> error =
          CheckJson(line, depth_max_ + envelope_depth, members)) {
    return JsonErrorToStatus(*error, "The line");
  }
  const auto& [cmd, type, msg] = members;
  const Command command(cmd.value);
  Line result;
  if (command.text() == kHandle && IsString(type.value)) {
    result.value = msg.value;
    result.handle_announced = true;
  } else if (deka && command.text() == kHandle) {
    if (msg.value.empty()) return EnvelopeMissing("it has no member \"msg\"");
    result.value = msg.value;
  } else {
    result.value = TrimJson(line);
    result.internal = command.internal();
    if (deka && !result.internal) {
      return EnvelopeMissing(cmd.value.empty() ? "it has no member \"cmd\""
                                               : "its \"cmd\" is another one");
    }
  }
  if (absl::Status status = CheckSize(result.value); !status.ok()) return status;
  return result;
}

absl::Status Codec::Check(std::string_view value) const {
  if (absl::Status status = CheckSize(value); !status.ok()) return status;
  JsonMember members[] = {{.key = "cmd"}};
  if (const std::optional<JsonError> error = CheckJson(value, depth_max_, members)) {
    return JsonErrorToStatus(*error, "The message");
  }
  if (dialect_ != Dialect::kNode || members[0].value.empty()) return absl::OkStatus();
  const Command command(members[0].value);
  if (command.text() == kHandle || command.text() == kHandleAck || command.text() == kHandleNack) {
    return MakeError(Reason::kReservedMessage,
                     fmt::format("A message whose \"cmd\" is {} is Node's own way to pass handles, "
                                 "and a Node child ends when it comes from outside. Use another "
                                 "\"cmd\".",
                                 command.text()));
  }
  return absl::OkStatus();
}

absl::Status Codec::CheckSize(std::string_view value) const {
  if (value.size() <= message_bytes_max_) return absl::OkStatus();
  return MakeError(Reason::kMessageTooLarge,
                   fmt::format("The message has {} bytes and the limit is {}. Send less at once, "
                               "or raise message_bytes_max.",
                               value.size(), message_bytes_max_),
                   {{"limit", fmt::format("{}", message_bytes_max_)}});
}

FrameParts Codec::EncodeAs(Dialect dialect, std::string_view value) {
  if (dialect == Dialect::kNode) return {.prefix = {}, .value = value, .suffix = "\n"};
  return {.prefix = kEnvelopePrefix, .value = value, .suffix = kEnvelopeSuffix};
}

std::string_view HandleNack() { return "{\"cmd\":\"NODE_HANDLE_NACK\"}\n"; }

std::vector<std::string> ChannelEnvironment(const std::vector<std::string>& base, Dialect dialect,
                                            int fd) {
  std::vector<std::string> environment = EnvironmentWithoutChannel(base);
  switch (dialect) {
    case Dialect::kDeka:
      environment.push_back("DEKA_IPC_ENABLED=1");
      environment.push_back(fmt::format("DEKA_IPC_FD={}", fd));
      break;
    case Dialect::kNode:
      environment.push_back(fmt::format("NODE_CHANNEL_FD={}", fd));
      environment.push_back("NODE_CHANNEL_SERIALIZATION_MODE=json");
      break;
  }
  return environment;
}

std::vector<std::string> EnvironmentWithoutChannel(const std::vector<std::string>& base) {
  std::vector<std::string> environment;
  environment.reserve(base.size() + 2);
  std::remove_copy_if(base.begin(), base.end(), std::back_inserter(environment), NamesChannel);
  return environment;
}

}  // namespace deka::ipc
