// The validator's parts. Each looks at one side of the facts, and adds to the verdict what it put
// to the test and what it found broken.
#ifndef TESTS_VALIDATOR_CHECKS_H_
#define TESTS_VALIDATOR_CHECKS_H_

#include <string>

#include "tests/validator/facts.h"
#include "tests/validator/verdict.h"

namespace deka::validator {

// Numbers, times, and the order of a child's kinds, in the one history that all streams are of.
void CheckEvents(const Facts& facts, Verdict& verdict);

// Each stream against that history: complete or gapped, begun and ended where it says.
void CheckStreams(const Facts& facts, Verdict& verdict);

// Each child's own account against its events.
void CheckAccounts(const Facts& facts, Verdict& verdict);

// What was asked for, sends, forks and signals, against the events that came of it.
void CheckRequests(const Facts& facts, Verdict& verdict);

// `message 17 of child k3`, as sentences name an event.
std::string NameOf(const v1::Event& event, const Facts& facts);
std::string NameOf(const ChildFacts& child);

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_CHECKS_H_
