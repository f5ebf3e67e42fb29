#include "sdk/dekactl/words.h"

#include <signal.h>
#include <string.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <optional>

#include "fmt/format.h"
#include "fmt/ranges.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/time_util.h"
#include "ipc/json.h"
#include "ipc/json_match.h"
#include "ipc/utf8.h"
#include "sdk/dekactl/cursor_text.h"
#include "sdk/dekactl/event_json.h"
#include "sdk/dekactl/number.h"

namespace deka::dekactl {
namespace {

template <typename Value>
struct Entry {
  std::string_view word;
  Value value;
};

constexpr Entry<v1::Dialect> kDialects[] = {
    {"deka", v1::DIALECT_DEKA},
    {"node", v1::DIALECT_NODE},
};

constexpr Entry<v1::Direction> kDirections[] = {
    {"from", v1::DIRECTION_FROM_CHILD},
    {"to", v1::DIRECTION_TO_CHILD},
};

constexpr Entry<v1::EventKind> kKinds[] = {
    {"started", v1::EVENT_KIND_STARTED},
    {"message", v1::EVENT_KIND_MESSAGE},
    {"output", v1::EVENT_KIND_OUTPUT},
    {"error", v1::EVENT_KIND_ERROR},
    {"undelivered", v1::EVENT_KIND_UNDELIVERED},
    {"signalled", v1::EVENT_KIND_SIGNALLED},
    {"disconnected", v1::EVENT_KIND_DISCONNECTED},
    {"exited", v1::EVENT_KIND_EXITED},
    {"closed", v1::EVENT_KIND_CLOSED},
};

constexpr Entry<v1::SlowPolicy> kSlowPolicies[] = {
    {"gap", v1::SLOW_POLICY_GAP},
    {"disconnect", v1::SLOW_POLICY_DISCONNECT},
    {"block", v1::SLOW_POLICY_BLOCK},
};

constexpr Entry<v1::Child::State> kStates[] = {
    {"connected", v1::Child::STATE_CONNECTED},
    {"disconnected", v1::Child::STATE_DISCONNECTED},
    {"exited", v1::Child::STATE_EXITED},
    {"closed", v1::Child::STATE_CLOSED},
};

template <typename Value, size_t kCount>
std::vector<std::string> WordsOf(const Entry<Value> (&entries)[kCount]) {
  std::vector<std::string> words;
  for (const Entry<Value>& entry : entries) {
    words.emplace_back(entry.word);
  }
  return words;
}

template <typename Value, size_t kCount>
absl::StatusOr<Value> Find(const Entry<Value> (&entries)[kCount], std::string_view what,
                           std::string_view word) {
  for (const Entry<Value>& entry : entries) {
    if (entry.word == word) {
      return entry.value;
    }
  }
  return absl::InvalidArgumentError(
      fmt::format("{} is no {}; write one of {}", word, what, fmt::join(WordsOf(entries), ", ")));
}

template <typename Value, size_t kCount>
std::string_view WordOf(const Entry<Value> (&entries)[kCount], Value value) {
  for (const Entry<Value>& entry : entries) {
    if (entry.value == value) {
      return entry.word;
    }
  }
  return "unknown";
}

// `word` as a JSON value: itself if it is one, else the string of these characters.
std::string JsonOf(std::string_view word) {
  if (!ipc::CheckJson(word, ipc::JsonMatch::kEqualsDepthMax).has_value()) {
    return std::string(word);
  }
  google::protobuf::Value value;
  value.set_string_value(std::string(word));
  return ToJson(value);
}

}  // namespace

std::vector<std::string> DialectWords() { return WordsOf(kDialects); }
std::vector<std::string> DirectionWords() { return WordsOf(kDirections); }
std::vector<std::string> KindWords() { return WordsOf(kKinds); }

std::vector<std::string> SlowWords() { return WordsOf(kSlowPolicies); }

std::vector<std::string> SignalWords() {
  std::vector<std::string> words;
  for (int signal = 1; signal < NSIG; ++signal) {
    if (const char* name = sigabbrev_np(signal); name != nullptr) {
      words.emplace_back(name);
    }
  }
  return words;
}

absl::StatusOr<v1::Dialect> ParseDialect(std::string_view word) {
  return Find(kDialects, "dialect", word);
}

absl::StatusOr<v1::Direction> ParseDirection(std::string_view word) {
  return Find(kDirections, "direction", word);
}

absl::StatusOr<v1::EventKind> ParseKind(std::string_view word) {
  return Find(kKinds, "kind of event", word);
}

absl::StatusOr<v1::SlowPolicy> ParseSlow(std::string_view word) {
  return Find(kSlowPolicies, "policy for a slow observer", word);
}

absl::StatusOr<int> ParseSignal(std::string_view word) {
  if (const std::optional<int64_t> number = ParseNumber(word);
      number.has_value() && *number > 0 && *number < NSIG) {
    return static_cast<int>(*number);
  }
  std::string name(word);
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char letter) { return static_cast<char>(std::toupper(letter)); });
  if (name.starts_with("SIG")) {
    name.erase(0, 3);
  }
  for (int signal = 1; signal < NSIG; ++signal) {
    if (const char* known = sigabbrev_np(signal); known != nullptr && name == known) {
      return signal;
    }
  }
  return absl::InvalidArgumentError(fmt::format(
      "{} is no signal; write a name such as TERM or a number from 1 to {}", word, NSIG - 1));
}

absl::StatusOr<v1::ObserveStart> ParseStart(std::string_view word) {
  constexpr std::string_view kLast = "last:";
  constexpr std::string_view kAfter = "after:";
  v1::ObserveStart start;
  if (word == "latest") {
    start.set_latest(true);
  } else if (word == "earliest") {
    start.set_earliest(true);
  } else if (word.starts_with(kLast)) {
    const std::optional<int64_t> count = ParseNumber(word.substr(kLast.size()));
    if (count.value_or(0) < 1) {
      return absl::InvalidArgumentError(
          fmt::format("{}: write last:N with a number N of events, 1 or more", word));
    }
    start.set_last(*count);
  } else if (word.starts_with(kAfter)) {
    absl::StatusOr<v1::Cursor> cursor = ParseCursor(word.substr(kAfter.size()));
    if (!cursor.ok()) {
      return cursor.status();
    }
    *start.mutable_after() = *std::move(cursor);
  } else {
    return absl::InvalidArgumentError(fmt::format(
        "{} is no place to begin; write earliest, latest, last:N or after:CURSOR", word));
  }
  return start;
}

absl::StatusOr<google::protobuf::Timestamp> ParseSince(std::string_view word,
                                                       std::chrono::system_clock::time_point now) {
  using google::protobuf::util::TimeUtil;
  google::protobuf::Timestamp since;
  if (const auto ago = ParseDuration(word); ago.ok()) {
    return TimeUtil::MillisecondsToTimestamp(
        std::chrono::duration_cast<std::chrono::milliseconds>((now - *ago).time_since_epoch())
            .count());
  }
  if (!TimeUtil::FromString(std::string(word), &since)) {
    return absl::InvalidArgumentError(
        fmt::format("{} is no time; write how long ago, as 10m, or when, as 2026-07-05T14:30:00Z "
                    "or 2026-07-05T14:30:00+02:00",
                    word));
  }
  return since;
}

absl::StatusOr<int64_t> ParseCount(std::string_view word) {
  const std::optional<int64_t> count = ParseNumber(word);
  if (count.value_or(0) < 1) {
    return absl::InvalidArgumentError(
        fmt::format("{} is no count; write a number, 1 or more", word));
  }
  return *count;
}

absl::StatusOr<std::chrono::milliseconds> ParseDuration(std::string_view word) {
  constexpr Entry<double> kUnits[] = {{"ms", 1}, {"s", 1e3}, {"m", 60e3}, {"h", 3600e3}};
  constexpr double kLongestMs = 365.0 * 24 * 3600e3;
  const size_t unit_at = std::min(word.find_first_not_of("0123456789."), word.size());
  const std::string number(word.substr(0, unit_at));
  char* end = nullptr;
  const double count = strtod(number.c_str(), &end);
  for (const auto& [unit, ms] : kUnits) {
    if (word.substr(unit_at) == unit && !number.empty() && *end == '\0' && count * ms >= 1 &&
        count * ms <= kLongestMs) {
      return std::chrono::milliseconds(std::llround(count * ms));
    }
  }
  return absl::InvalidArgumentError(
      fmt::format("{} is no duration; write a number and ms, s, m or h, as in 1.5s, at least 1ms "
                  "and at most a year",
                  word));
}

absl::StatusOr<std::chrono::milliseconds> ParseHold(std::string_view word) {
  constexpr std::chrono::seconds kLongest{8};
  absl::StatusOr<std::chrono::milliseconds> hold = ParseDuration(word);
  if (hold.ok() && *hold > kLongest) {
    return absl::InvalidArgumentError(fmt::format(
        "{} is too long to hold a child back; write at most {}s", word, kLongest.count()));
  }
  return hold;
}

absl::StatusOr<std::optional<int64_t>> ParsePayload(std::string_view word) {
  if (word == "full") {
    return std::optional<int64_t>();
  }
  if (word == "none") {
    return std::optional<int64_t>(0);
  }
  constexpr Entry<int64_t> kUnits[] = {{"", 1}, {"k", 1 << 10}, {"m", 1 << 20}};
  // No payload is longer.
  constexpr int64_t kBytesMax = 64 << 20;
  const size_t unit_at = std::min(word.find_first_not_of("0123456789"), word.size());
  const std::optional<int64_t> count = ParseNumber(word.substr(0, unit_at));
  for (const auto& [unit, bytes] : kUnits) {
    if (word.substr(unit_at) == unit && count.value_or(0) >= 1 && *count <= kBytesMax / bytes) {
      return std::optional<int64_t>(*count * bytes);
    }
  }
  return absl::InvalidArgumentError(
      fmt::format("{} is no size of a payload; write full, none, or a number of bytes as 200 or "
                  "4k, at most 64m",
                  word));
}

absl::StatusOr<v1::ContentFilter> ParseWhere(std::string_view word) {
  constexpr size_t kShownBytesMax = 64;
  const auto refuse = [word](std::string_view why) {
    return absl::InvalidArgumentError(fmt::format("{}: {}; an example: /user/name=bob",
                                                  ipc::Utf8Prefix(word, kShownBytesMax), why));
  };
  if (word.empty()) {
    return absl::InvalidArgumentError(
        "a condition is missing; write POINTER=VALUE, as /user/name=bob, or POINTER");
  }
  if (!ipc::IsUtf8(word)) {
    return refuse("it is not UTF-8; write it in UTF-8");
  }
  const size_t equals = word.find('=');
  v1::ContentFilter where;
  where.set_pointer(std::string(word.substr(0, equals)));
  std::optional<std::string_view> value;
  if (equals != std::string_view::npos) {
    where.set_equals(JsonOf(word.substr(equals + 1)));
    value = where.equals();
  }
  if (const auto match = ipc::JsonMatch::Create(where.pointer(), value); !match.ok()) {
    const absl::string_view why = match.status().message();
    return refuse({why.data(), why.size()});
  }
  return where;
}

absl::StatusOr<std::pair<std::string, std::string>> ParsePair(std::string_view word) {
  const size_t equals = word.find('=');
  if (equals == std::string_view::npos || equals == 0) {
    return absl::InvalidArgumentError(
        fmt::format("{} is no pair; write KEY=VALUE, as in color=blue", word));
  }
  return std::pair(std::string(word.substr(0, equals)), std::string(word.substr(equals + 1)));
}

std::string_view Word(v1::Dialect dialect) { return WordOf(kDialects, dialect); }
std::string_view Word(v1::Child::State state) { return WordOf(kStates, state); }

std::string SignalWord(int signal) {
  const char* name = signal > 0 && signal < NSIG ? sigabbrev_np(signal) : nullptr;
  return name == nullptr ? fmt::format("signal {}", signal) : fmt::format("SIG{}", name);
}

std::string ExitWords(const v1::ExitStatus& status) {
  std::string words;
  switch (status.result_case()) {
    case v1::ExitStatus::kCode:
      words = fmt::format("exited with code {}", status.code());
      break;
    case v1::ExitStatus::kSignal:
      words = fmt::format("ended by {}", SignalWord(status.signal()));
      break;
    default:
      words = fmt::format("ended, nobody knows how: {}", status.unknown_reason());
  }
  return status.still_held() ? words + "; another process still holds its channel or output"
                             : words;
}

}  // namespace deka::dekactl
