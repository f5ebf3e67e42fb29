#include "server/descriptors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

namespace deka::server {
namespace {

TEST(Descriptors, LeaveLimitsThatFit) {
  agent::Limits limits;
  limits.children_max = 100;
  size_t connections_max = 50;
  const size_t needed = DescriptorsFor(limits, connections_max);
  EXPECT_EQ(needed, kDescriptorsReserved + 50 + 100 * kDescriptorsOfChild);
  EXPECT_EQ(FitToDescriptors(needed, limits, connections_max), "");
  EXPECT_EQ(limits.children_max, 100u);
  EXPECT_EQ(connections_max, 50u);
}

TEST(Descriptors, LowerLimitsThatDoNotFitAndSaySo) {
  agent::Limits limits;
  limits.children_max = 100;
  size_t connections_max = 50;
  const size_t needed = DescriptorsFor(limits, connections_max);
  EXPECT_EQ(
      FitToDescriptors(needed - 1, limits, connections_max),
      "The limit of 705 descriptors allows 99 children (children_max was 100). Raise the hard "
      "limit (ulimit -Hn) for more.");
  EXPECT_EQ(limits.children_max, 99u);
  EXPECT_EQ(connections_max, 50u);
}

TEST(Descriptors, AreSharedByChildrenAndConnections) {
  agent::Limits limits;
  size_t connections_max = 1024;
  EXPECT_EQ(FitToDescriptors(1024, limits, connections_max),
            "The limit of 1024 descriptors allows 144 children (children_max was 16384) and 192 "
            "connections (connections_max was 1024). Raise the hard limit (ulimit -Hn) for more.");
  EXPECT_EQ(connections_max, (1024 - kDescriptorsReserved) / 4);
  EXPECT_LE(DescriptorsFor(limits, connections_max), 1024u);
  EXPECT_GT(DescriptorsFor(limits, connections_max) + kDescriptorsOfChild, 1024u);
}

TEST(Descriptors, AllowOneOfEachHoweverFewThereAre) {
  agent::Limits limits;
  size_t connections_max = 1024;
  FitToDescriptors(10, limits, connections_max);
  EXPECT_EQ(limits.children_max, 1u);
  EXPECT_EQ(connections_max, 1u);
}

TEST(Descriptors, AreRaisedToTheHardLimit) {
  rlimit limit = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  limit.rlim_cur = 200;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  const DescriptorLimit raised = RaiseDescriptorLimit(300);
  EXPECT_EQ(raised.before, 200u);
  EXPECT_EQ(raised.now, limit.rlim_max);
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(limit.rlim_cur, limit.rlim_max);
}

}  // namespace
}  // namespace deka::server
