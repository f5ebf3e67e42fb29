// The words of the command line for what the API has numbers and enums for.
#ifndef SDK_DEKACTL_WORDS_H_
#define SDK_DEKACTL_WORDS_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "deka/bridge/v1/bridge_service.pb.h"

namespace deka::dekactl {

namespace v1 = ::deka::bridge::v1;

// All words of a flag, for its help and its completion.
std::vector<std::string> DialectWords();    // deka node
std::vector<std::string> DirectionWords();  // from to
std::vector<std::string> KindWords();       // started message output ...
std::vector<std::string> SignalWords();     // HUP INT ... without SIG
std::vector<std::string> SlowWords();       // gap disconnect block

// Each is INVALID_ARGUMENT, naming all words, if `word` is none of them.
absl::StatusOr<v1::Dialect> ParseDialect(std::string_view word);
absl::StatusOr<v1::Direction> ParseDirection(std::string_view word);
absl::StatusOr<v1::EventKind> ParseKind(std::string_view word);
absl::StatusOr<v1::SlowPolicy> ParseSlow(std::string_view word);
// `TERM`, `SIGTERM`, in either case, or a number.
absl::StatusOr<int> ParseSignal(std::string_view word);

// `earliest`, `latest`, `last:N`, `after:CURSOR`.
absl::StatusOr<v1::ObserveStart> ParseStart(std::string_view word);
// `10m`, that long before `now`, or a time as RFC 3339 writes it: `2026-07-05T14:30:00Z`.
absl::StatusOr<google::protobuf::Timestamp> ParseSince(std::string_view word,
                                                       std::chrono::system_clock::time_point now);
// How many: 1 or more.
absl::StatusOr<int64_t> ParseCount(std::string_view word);
// `1.5s`, `200ms`, `2m`, `1h`; more than zero.
absl::StatusOr<std::chrono::milliseconds> ParseDuration(std::string_view word);
// How long a child may be held back: 1ms to 8s.
absl::StatusOr<std::chrono::milliseconds> ParseHold(std::string_view word);
// How much of a payload to show: `full`, which is unset, `none`, or bytes as `200`, `4k`, `1m`.
absl::StatusOr<std::optional<int64_t>> ParsePayload(std::string_view word);
// A condition on a message: `POINTER`, which must exist, or `POINTER=VALUE`, where the first `=`
// ends the pointer. A VALUE that is no JSON is taken as a string.
absl::StatusOr<v1::ContentFilter> ParseWhere(std::string_view word);
// `KEY=VALUE`.
absl::StatusOr<std::pair<std::string, std::string>> ParsePair(std::string_view word);

std::string_view Word(v1::Dialect dialect);           // "deka"
std::string_view Word(v1::Child::State state);        // "connected"
std::string SignalWord(int signal);                   // "SIGTERM", "signal 77"
std::string ExitWords(const v1::ExitStatus& status);  // "exited with code 3"

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_WORDS_H_
