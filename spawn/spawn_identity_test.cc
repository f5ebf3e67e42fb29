// Identity is tested apart: Bazel's sandbox has one user only.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <string>

#include "gtest/gtest.h"
#include "spawn/spawn.h"

namespace deka::spawn {
namespace {

struct Outcome {
  Started started;
  std::string output;
};

// Runs `id` as the given user and group.
Outcome RunAs(const uid_t* user, const gid_t* group) {
  int ends[2];
  EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const char* const arguments[] = {"sh", "-c", "id -u; id -g; id -G", nullptr};
  const char* const environment[] = {"PATH=/usr/bin:/bin", nullptr};
  const DescriptorMapping mapping = {ends[1], 1};
  Options options;
  options.program = "sh";
  options.arguments = arguments;
  options.environment = environment;
  options.descriptors = &mapping;
  options.descriptors_count = 1;
  options.directory = "/";
  options.user = user;
  options.group = group;

  Outcome outcome{Spawn(options), ""};
  close(ends[1]);
  if (outcome.started.failed_step == Step::kNone) {
    char buffer[256];
    for (ssize_t count; (count = read(ends[0], buffer, sizeof(buffer))) > 0;) {
      outcome.output.append(buffer, static_cast<size_t>(count));
    }
    pollfd ready{.fd = outcome.started.pidfd, .events = POLLIN, .revents = 0};
    EXPECT_EQ(poll(&ready, 1, 20000), 1);
    EXPECT_EQ(Reap(outcome.started.pidfd).value, 0);
    close(outcome.started.pidfd);
  }
  close(ends[0]);
  return outcome;
}

constexpr uid_t kOtherUser = 65534;
constexpr gid_t kOtherGroup = 65533;

TEST(SpawnIdentityTest, OwnIdentityNeedsNoPrivilege) {
  const uid_t user = geteuid();
  const gid_t group = getegid();
  const Outcome outcome = RunAs(&user, &group);
  ASSERT_EQ(outcome.started.failed_step, Step::kNone);
  EXPECT_EQ(outcome.output.find(std::to_string(user) + "\n" + std::to_string(group) + "\n"), 0u);
}

TEST(SpawnIdentityTest, OtherIdentity) {
  const Outcome outcome = RunAs(&kOtherUser, &kOtherGroup);
  if (geteuid() == 0) {
    EXPECT_EQ(outcome.output, "65534\n65533\n65533\n");  // no supplementary group is left
    EXPECT_EQ(geteuid(), 0u);
  } else {
    EXPECT_EQ(outcome.started.failed_step, Step::kSetgroups);
    EXPECT_EQ(outcome.started.error, EPERM);
  }
}

TEST(SpawnIdentityTest, UserAlone) {
  const Outcome outcome = RunAs(&kOtherUser, nullptr);
  if (geteuid() == 0) {
    const std::string group = std::to_string(getegid());
    EXPECT_EQ(outcome.output, "65534\n" + group + "\n" + group + "\n");
  } else {
    EXPECT_EQ(outcome.started.failed_step, Step::kSetgroups);
  }
}

TEST(SpawnIdentityTest, ImpossibleIdentity) {
  const uid_t no_user = static_cast<uid_t>(-1);
  const gid_t no_group = static_cast<gid_t>(-1);
  const Step user_step = RunAs(&no_user, nullptr).started.failed_step;
  const Step group_step = RunAs(nullptr, &no_group).started.failed_step;
  if (geteuid() == 0) {
    EXPECT_EQ(user_step, Step::kSetuid);
    EXPECT_EQ(group_step, Step::kSetgid);
  } else {
    EXPECT_EQ(user_step, Step::kSetgroups);
    EXPECT_EQ(group_step, Step::kSetgroups);
  }
}

}  // namespace
}  // namespace deka::spawn
