// What the validator has to say of a recording: which promises were put to the test, how often, and
// which were broken.
#ifndef TESTS_VALIDATOR_VERDICT_H_
#define TESTS_VALIDATOR_VERDICT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace deka::validator {

// One thing that can be found wrong. Each belongs to a promise of docs/guarantees.md.
enum class Check {
  kChildSequenceDense,
  kSequenceDense,
  kSequenceGrows,
  kSameEvent,
  kPayloadCut,
  kTime,
  kStartedFirst,
  kClosedLast,
  kWrittenByChild,
  kOutputByChild,
  kLastWords,
  kLastOutput,
  kOwnEnd,
  kStillHeld,
  kAnswerAfterQuestion,
  kAttachOrder,
  kCallOrder,
  kFramesWhole,
  kSignalledFirst,
  kWritten,
  kReadByChild,
  kAccepted,
  kAcceptedOrder,
  kRefused,
  kSendOnce,
  kForkOnce,
  kNotRemembered,
  kNothingSilent,
  kShownOnce,
  kFits,
  kGap,
  kForgottenGap,
  kResumed,
  kFirstGaps,
  kFailOnGap,
  kSnapshot,
  kSnapshotThenEvents,
  kLaterChild,
  kFinCursor,
  kFinReason,
  kStopShowsAll,
  kHeartbeat,
  kPausedObserver,
  kLossless,
  kOwnLog,
};
inline constexpr size_t kChecks = static_cast<size_t>(Check::kOwnLog) + 1;

struct CheckInfo {
  int promise;               // its number in docs/guarantees.md
  std::string_view name;     // as in `15 gap`
  std::string_view subject;  // what is counted: `gaps shown to be exact`
};
const CheckInfo& InfoOf(Check check);

struct Violation {
  Check check;
  std::string sentence;
  std::vector<size_t> records;  // by their place in the recording
};

struct Verdict {
  // Of a recording that is wrong all over, enough to see why.
  static constexpr size_t kViolationsMax = 50;

  std::vector<Violation> violations;
  std::array<int64_t, kChecks> exercised{};  // by Check: how often it could have failed

  bool ok() const { return violations.empty(); }
  void Exercise(Check check, int64_t times = 1) { exercised[static_cast<size_t>(check)] += times; }
  void Violate(Check check, std::string sentence, std::vector<size_t> records) {
    if (violations.size() < kViolationsMax) {
      violations.push_back({check, std::move(sentence), std::move(records)});
    }
  }
};

// A table of the promises and how often each was exercised.
std::string ExercisedText(const std::array<int64_t, kChecks>& exercised);

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_VERDICT_H_
