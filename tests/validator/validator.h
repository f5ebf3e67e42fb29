// Whether the promises of docs/guarantees.md were kept in a history that was recorded.
//
//   Recording -> Facts: the events by number, whoever was shown them; children; streams; requests
//             -> checks -> Verdict
//
// It reads the recording only, and knows nothing of the agent but its API and its promises. It is
// right for every timing: what depends on which of two things came first it holds to be wrong only
// if the recording shows that the one was over before the other began. What nobody was shown (a log
// turned over before anybody read it) it does not know, and takes the numbers around it into
// account: so many events are unknown, and no more.
#ifndef TESTS_VALIDATOR_VALIDATOR_H_
#define TESTS_VALIDATOR_VALIDATOR_H_

#include <string>

#include "tests/validator/record.h"
#include "tests/validator/verdict.h"

namespace deka::validator {

Verdict Validate(const Recording& recording);

// The promise's number, the sentence, and the records involved, a line each.
std::string ToText(const Violation& violation, const Recording& recording);

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_VALIDATOR_H_
