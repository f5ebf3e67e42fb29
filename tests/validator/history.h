// Runs one history: a deka-agent, children, observers and senders that do what the plan of a seed
// says, all at once, and records what each of them did and saw.
//
//   main      starts the agent, forks, ends the children when the senders are done, stops the agent
//   witness   observes everything from the first event on
//   observers, senders, one thread each, by their plans
#ifndef TESTS_VALIDATOR_HISTORY_H_
#define TESTS_VALIDATOR_HISTORY_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/validator/plan.h"
#include "tests/validator/record.h"

namespace deka::validator {

struct Programs {
  std::string agent;
  std::string child;
};

struct History {
  Recording recording;
  // What went wrong beside promises: something hung, the agent ended badly, there were too few
  // events.
  std::vector<std::string> troubles;
  size_t children = 0, observers = 0, senders = 0;
  int64_t events = 0;
};

History RunHistory(const Programs& programs, const Plan& plan);

}  // namespace deka::validator

#endif  // TESTS_VALIDATOR_HISTORY_H_
