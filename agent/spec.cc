#include "agent/spec.h"

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "agent/names.h"
#include "fmt/format.h"
#include "ipc/log.h"

namespace deka::agent {
namespace {

// What a program is given.
absl::Status ValidateWord(std::string_view field, std::string_view word) {
  if (word.find('\0') == std::string_view::npos) return absl::OkStatus();
  return InvalidField(field, "holds a NUL byte, which no program can be given.");
}

template <typename Field>
Field Fitted(size_t limit) {
  return static_cast<Field>(std::min<size_t>(limit, std::numeric_limits<Field>::max()));
}

absl::StatusOr<size_t> LimitOf(std::string_view field, int64_t asked, size_t otherwise) {
  if (asked < 0) return InvalidField(field, "must not be negative; 0 means the agent's.");
  return asked == 0 ? otherwise : static_cast<size_t>(asked);
}

}  // namespace

absl::Status ValidateLimits(const Limits& limits) {
  const std::pair<std::string_view, size_t> counts[] = {
      {"queue_messages_max", limits.queue_messages_max},
      {"log_events_max", limits.log_events_max},
      {"children_max", limits.children_max},
      {"observers_max", limits.observers_max},
  };
  for (const auto& [name, value] : counts) {
    if (value == 0) return InvalidField(name, "must be at least 1.");
  }
  return ValidateChildLimits(
      {limits.message_bytes_max, limits.queue_bytes_max, limits.log_bytes_max}, limits);
}

absl::Status ValidateChildLimits(const ChildLimits& child, const Limits& agent,
                                 std::string_view within) {
  const auto invalid = [within](std::string_view name, std::string_view what) {
    return InvalidField(fmt::format("{}{}", within, name), what);
  };
  const auto too_small = [&](std::string_view name, size_t value, size_t overhead) {
    return invalid(name, fmt::format("is {}; it must be at least {}, room for one message of {} "
                                     "(message_bytes_max) and {} more.",
                                     value, child.message_bytes_max + overhead,
                                     child.message_bytes_max, overhead));
  };
  if (child.message_bytes_max == 0) return invalid("message_bytes_max", "must be at least 1.");
  if (child.message_bytes_max > kMessageBytesCeiling) {
    return invalid("message_bytes_max", fmt::format("is {}; it must be at most {}.",
                                                    child.message_bytes_max, kMessageBytesCeiling));
  }
  if (child.queue_bytes_max < child.message_bytes_max + kQueueOverheadBytes) {
    return too_small("queue_bytes_max", child.queue_bytes_max, kQueueOverheadBytes);
  }
  if (child.queue_bytes_max > agent.queues_bytes_max) {
    return invalid("queue_bytes_max",
                   fmt::format("is {}; all queues together have {} (queues_bytes_max).",
                               child.queue_bytes_max, agent.queues_bytes_max));
  }
  if (child.log_bytes_max < child.message_bytes_max + kLogOverheadBytes) {
    return too_small("log_bytes_max", child.log_bytes_max, kLogOverheadBytes);
  }
  if (child.log_bytes_max > agent.logs_bytes_max) {
    return invalid("log_bytes_max",
                   fmt::format("is {}; all logs together have {} (logs_bytes_max).",
                               child.log_bytes_max, agent.logs_bytes_max));
  }
  return absl::OkStatus();
}

absl::StatusOr<ChildLimits> ChildLimitsOf(const v1::ChildLimits& asked, const Limits& agent) {
  ChildLimits limits;
  const struct {
    std::string_view field;
    int64_t asked;
    size_t agents;
    size_t& result;
  } all[] = {
      {"spec.limits.message_bytes_max", asked.message_bytes_max(), agent.message_bytes_max,
       limits.message_bytes_max},
      {"spec.limits.queue_bytes_max", asked.queue_bytes_max(), agent.queue_bytes_max,
       limits.queue_bytes_max},
      {"spec.limits.log_bytes_max", asked.log_bytes_max(), agent.log_bytes_max,
       limits.log_bytes_max},
  };
  for (const auto& limit : all) {
    const absl::StatusOr<size_t> value = LimitOf(limit.field, limit.asked, limit.agents);
    if (!value.ok()) return value.status();
    limit.result = *value;
  }
  if (absl::Status status = ValidateChildLimits(limits, agent, "spec.limits."); !status.ok()) {
    return status;
  }
  return limits;
}

absl::StatusOr<ipc::ForkOptions> ForkOptionsOf(const v1::ChildSpec& spec, const Limits& agent,
                                               const std::vector<std::string>& environment) {
  if (spec.program().empty()) return InvalidField("spec.program", "is missing.");
  if (spec.program().size() > kPathBytesMax) {
    return InvalidField("spec.program", fmt::format("has {} bytes; at most {} are allowed.",
                                                    spec.program().size(), kPathBytesMax));
  }
  if (spec.cwd().size() > kPathBytesMax) {
    return InvalidField("spec.cwd", fmt::format("has {} bytes; at most {} are allowed.",
                                                spec.cwd().size(), kPathBytesMax));
  }
  if (absl::Status status = ValidateWord("spec.program", spec.program()); !status.ok()) {
    return status;
  }
  if (absl::Status status = ValidateWord("spec.cwd", spec.cwd()); !status.ok()) return status;
  size_t command_bytes = 0;
  for (int i = 0; i < spec.args_size(); ++i) {
    const std::string field = fmt::format("spec.args[{}]", i);
    if (absl::Status status = ValidateWord(field, spec.args(i)); !status.ok()) return status;
    command_bytes += spec.args(i).size() + kWordBytes;
  }
  for (const auto& [name, value] : spec.env()) {
    if (name.empty() || name.find('=') != std::string::npos || HasControl(name)) {
      return InvalidField("spec.env", fmt::format("has the name \"{}\"; a name is not empty and "
                                                  "holds no `=` and no control characters.",
                                                  ipc::Escaped(name, kNameBytesMax)));
    }
    if (absl::Status status = ValidateWord("spec.env", value); !status.ok()) return status;
    command_bytes += name.size() + 1 + value.size() + kWordBytes;
  }
  if (command_bytes > kCommandBytesMax) {
    return InvalidField("spec.args",
                        fmt::format("has {} bytes with the environment; at most {} are "
                                    "allowed.",
                                    command_bytes, kCommandBytesMax));
  }
  if (spec.kill_signal() != 0 && !IsSignal(spec.kill_signal())) {
    return InvalidField("spec.kill_signal",
                        fmt::format("is {}, which is no signal.", spec.kill_signal()));
  }
  const absl::StatusOr<ChildLimits> limits = ChildLimitsOf(spec.limits(), agent);
  if (!limits.ok()) return limits.status();

  ipc::ForkOptions options;
  options.program = spec.program();
  options.args.assign(spec.args().begin(), spec.args().end());
  options.cwd = spec.cwd();
  if (spec.clear_env() || spec.env_size() > 0) {
    std::vector<std::string>& env = options.env.emplace();
    if (!spec.clear_env()) {
      for (const std::string& entry : environment) {
        if (!spec.env().contains(entry.substr(0, entry.find('=')))) env.push_back(entry);
      }
    }
    for (const auto& [name, value] : spec.env()) env.push_back(name + "=" + value);
  }
  options.detached = spec.detached();
  options.own_process_group = !spec.detached();
  if (spec.has_uid()) options.uid = spec.uid();
  if (spec.has_gid()) options.gid = spec.gid();
  if (spec.kill_signal() != 0) options.kill_signal = spec.kill_signal();
  options.stdin_mode = ipc::Stdio::kNull;
  options.stdout_mode = ipc::Stdio::kPipe;
  options.stderr_mode = ipc::Stdio::kPipe;
  options.ipc = !spec.no_channel();
  switch (spec.dialect()) {
    case v1::DIALECT_UNSPECIFIED:
      break;
    case v1::DIALECT_DEKA:
      options.dialect = ipc::Dialect::kDeka;
      break;
    case v1::DIALECT_NODE:
      options.dialect = ipc::Dialect::kNode;
      break;
    default:
      return InvalidField("spec.dialect", fmt::format("is {}, which is no dialect of this agent.",
                                                      static_cast<int>(spec.dialect())));
  }
  options.channel.message_bytes_max = limits->message_bytes_max;
  options.channel.queue_bytes_max = limits->queue_bytes_max;
  options.channel.queue_messages_max = agent.queue_messages_max;
  return options;
}

absl::StatusOr<std::chrono::milliseconds> TimeoutOf(const v1::ChildSpec& spec) {
  if (!spec.has_timeout()) return std::chrono::milliseconds(0);
  constexpr int64_t kSecondsMax = 10ll * 365 * 24 * 3600;
  const google::protobuf::Duration& timeout = spec.timeout();
  const bool valid = timeout.seconds() >= 0 && timeout.seconds() <= kSecondsMax &&
                     timeout.nanos() >= 0 && timeout.nanos() <= 999'999'999;
  const std::chrono::milliseconds time(
      valid ? timeout.seconds() * 1000 + timeout.nanos() / 1'000'000 : 0);
  if (time.count() == 0) {
    return InvalidField("spec.timeout",
                        "must be at least 1 ms and at most ten years; leave it out "
                        "for none.");
  }
  return time;
}

v1::Dialect ToProto(ipc::Dialect dialect) {
  return dialect == ipc::Dialect::kNode ? v1::DIALECT_NODE : v1::DIALECT_DEKA;
}

v1::AgentLimits ToProto(const Limits& limits) {
  v1::AgentLimits proto;
  v1::ChildLimits& child = *proto.mutable_child();
  child.set_message_bytes_max(Fitted<int64_t>(limits.message_bytes_max));
  child.set_queue_bytes_max(Fitted<int64_t>(limits.queue_bytes_max));
  child.set_log_bytes_max(Fitted<int64_t>(limits.log_bytes_max));
  proto.set_logs_bytes_max(Fitted<int64_t>(limits.logs_bytes_max));
  proto.set_queues_bytes_max(Fitted<int64_t>(limits.queues_bytes_max));
  proto.set_children_max(Fitted<int32_t>(limits.children_max));
  proto.set_observers_max(Fitted<int32_t>(limits.observers_max));
  proto.set_log_events_max(Fitted<int32_t>(limits.log_events_max));
  proto.set_queue_messages_max(Fitted<int32_t>(limits.queue_messages_max));
  proto.set_ended_children_max(Fitted<int32_t>(limits.ended_children_max));
  return proto;
}

}  // namespace deka::agent
