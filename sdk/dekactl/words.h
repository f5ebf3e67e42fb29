// The words of the command line for what the API has numbers and enums for.
#ifndef SDK_DEKACTL_WORDS_H_
#define SDK_DEKACTL_WORDS_H_

#include <chrono>
#include <cstdint>
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

// Each is INVALID_ARGUMENT, naming all words, if `word` is none of them.
absl::StatusOr<v1::Dialect> ParseDialect(std::string_view word);
absl::StatusOr<v1::Direction> ParseDirection(std::string_view word);
absl::StatusOr<v1::EventKind> ParseKind(std::string_view word);
// `TERM`, `SIGTERM`, in either case, or a number.
absl::StatusOr<int> ParseSignal(std::string_view word);

// `earliest`, `latest`, `last:N`, `after:CURSOR`.
absl::StatusOr<v1::ObserveStart> ParseStart(std::string_view word);
// How many: 1 or more.
absl::StatusOr<int64_t> ParseCount(std::string_view word);
// `1.5s`, `200ms`, `2m`, `1h`; more than zero.
absl::StatusOr<std::chrono::milliseconds> ParseDuration(std::string_view word);
// `KEY=VALUE`; `flag` names the flag in the error.
absl::StatusOr<std::pair<std::string, std::string>> ParsePair(std::string_view flag,
                                                              std::string_view word);

std::string_view Word(v1::Dialect dialect);           // "deka"
std::string_view Word(v1::Child::State state);        // "connected"
std::string SignalWord(int signal);                   // "SIGTERM", "signal 77"
std::string ExitWords(const v1::ExitStatus& status);  // "exited with code 3"

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_WORDS_H_
