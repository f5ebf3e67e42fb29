#include "tests/validator/validator.h"

#include "fmt/format.h"
#include "tests/validator/checks.h"
#include "tests/validator/facts.h"

namespace deka::validator {
namespace {

// A batch of events is long; its beginning tells which it is.
constexpr size_t kLineBytesMax = 400;
// Promises 1 and 2 are those of the numbers.
constexpr int kNumbersPromiseMax = 2;

}  // namespace

Verdict Validate(const Recording& recording) {
  const Facts facts(recording);
  Verdict verdict;
  CheckEvents(facts, verdict);
  // Where numbers are wrong, everything that goes by them would be, too.
  for (const Violation& violation : verdict.violations) {
    if (InfoOf(violation.check).promise <= kNumbersPromiseMax) return verdict;
  }
  CheckStreams(facts, verdict);
  CheckAccounts(facts, verdict);
  CheckRequests(facts, verdict);
  return verdict;
}

std::string ToText(const Violation& violation, const Recording& recording) {
  const CheckInfo& info = InfoOf(violation.check);
  std::string text =
      fmt::format("promise {} is broken ({}): {}\n", info.promise, info.name, violation.sentence);
  for (const size_t record : violation.records) {
    std::string line = ToText(recording[record]);
    if (line.size() > kLineBytesMax) line = line.substr(0, kLineBytesMax) + "...";
    text += fmt::format("    record {}: {}\n", record, line);
  }
  return text;
}

}  // namespace deka::validator
