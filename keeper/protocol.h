// What the keeper and its agents say to each other.
//
//   keeper -> spare   kFile, kChild*, kFed, then what changes: kChild, kExited, kGone
//          -> agent   kKept*, kGo, then kSpawned, kExited, kStop, kSpare, kRefused
//   agent  -> keeper  kReady, then kKeep, kSpawn, kAcknowledge, kRelease, kForget, kUpgrade
//
// One SOCK_SEQPACKET pair for each agent: a packet is one Message, with descriptors (SCM_RIGHTS) as
// its type says. The agent finds its end by DEKA_KEEPER_FD. Types that are not known are passed
// over. A side that closes its end, or sends an empty packet, has ended the conversation.
//
// The keeper never waits for an agent, and queues nothing: its tables say who is to be told what. A
// spare that takes none of its mail for a while is killed and replaced. An agent's next request is
// read when the answer to its last is in its socket.
//
// A spare is an agent that was not told kGo: it holds descriptors and mappings, and reads, writes
// and stores nothing of what they stand for before kGo. The keeper says kGo when the agent before
// has been waited for, and not earlier, so there is one agent at a time.
//
// A child is known by a number that the agent gives it when it asks for it; numbers are not used
// again. What an agent has asked for when it dies is done before its successor hears kGo.
//
// Uses nothing but libc.
#ifndef KEEPER_PROTOCOL_H_
#define KEEPER_PROTOCOL_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace deka::keeper {

// Both sides were built for it, or the agent is refused.
inline constexpr uint32_t kProtocolVersion = 1;

// The agent's end of the pair: the number of its descriptor. An agent has no other descriptors but
// 0 to 2, a process group of its own, and the limit of descriptors that the keeper was started
// with.
inline constexpr char kDescriptorVariable[] = "DEKA_KEEPER_FD";

enum class Type : uint32_t {
  // --- From the keeper. ---

  // First. `number`: kProtocolVersion; `id`: which agent this is, 1 for the first; `pid`: the
  // keeper's. One descriptor: the agent file, see AgentFile.
  kFile = 1,
  // Before kGo. `id`: the slot of kKeep; its descriptors.
  kKept,
  // `id`, `pid`, `detail`: the Holds that come, in the order of their bits; with kHasExited
  // `status` is the wait status, which nobody has acknowledged. In no order of children.
  kChild,
  // All children there are have been told; from now on changes are told. `detail` 1: kGo follows.
  kFed,
  // The agent from now on. The first agent, and one for which no spare was ready, is told so right
  // after kFed, and says kReady when it works.
  kGo,
  // Of kSpawn: `id`, `pid`, one descriptor, the pidfd (none after kRelease). Or it failed: `detail`
  // is the spawn::Step, `status` the errno, nothing is kept. In the order of the requests.
  kSpawned,
  // To agent and spare. `id` has ended; `status`: its wait status. Once to each, after kSpawned or
  // kChild; said to later spares with kChild until kAcknowledge.
  kExited,
  // To a spare: `id`'s descriptors but its memory (`detail` 0), or all of it (`detail` 1), are not
  // held any more. A successor may hear it after kGo.
  kGone,
  // End the children in order, then exit. `status`: the signal that asked for it. `detail` 1: at
  // once, said after it was said without.
  kStop,
  // To the agent. `pid`: the spare that is ready now; 0: none is.
  kSpare,
  // To the agent. The upgrade that was wanted is not done; `detail`: the Refusal.
  kRefused,

  // --- From the agent. ---

  // Has taken in what it was told up to kFed and can become the agent; `number`: kProtocolVersion,
  // `id`: the layout version of its files, the same as the agent's before it.
  kReady = 64,
  // Hold these for successors. `id`: a slot below kSlotsMax; what it held before is closed.
  kKeep,
  // Start a program. `id`: the child's number; `detail`: the Holds that come. Descriptors: a
  // SpawnSpec, what is to be held, then those that the child gets. Answered by kSpawned; of a
  // number
  // that is known already, with the child that there is. A spec that breaks a rule, and descriptors
  // that are not as many as it says: spawn::Step::kStart, EINVAL.
  kSpawn,
  // The exit of `id` is recorded.
  kAcknowledge,
  // `id` is done: all its descriptors but its memory may be closed.
  kRelease,
  // `id` may be forgotten, its memory too. One that runs is waited for, and ended with the others,
  // but not told any more.
  kForget,
  // Start a new agent and put it in this one's place: by SIGKILL, when the new one is ready. One
  // descriptor, if `detail` is 1: the program; else what is at the program's path now. The last
  // wish
  // counts. kRefused if it is not done.
  kUpgrade,
};

// What is held for a child.
enum Holds : uint32_t {
  kMemory = 1,
  kChannel = 2,
  kStdout = 4,
  kStderr = 8,
  kPidfd = 16,       // in kChild
  kHasExited = 256,  // in kChild; no descriptor
};

enum class Refusal : uint32_t {
  kNone,
  kNotStarted,  // the program cannot be opened or executed
  kEnded,       // before its kReady
  kSilent,      // no kReady in time
  kProtocol,    // another kProtocolVersion
  kLayout,      // another layout version than the agent's
};

inline constexpr uint32_t kSlotsMax = 64;
inline constexpr size_t kDescriptorsMax = 250;  // of one packet; the kernel's limit is 253

struct Message {
  Type type = {};
  uint32_t detail = 0;
  uint64_t id = 0;
  int32_t pid = 0;
  int32_t status = 0;
  uint64_t number = 0;
};
static_assert(sizeof(Message) == 32);

// What kSpawn's first descriptor holds: a memfd with F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE.
// Offsets are from its first byte, and behind this struct; strings end with NUL; `arguments` and
// `environment` are that many strings one behind the other.
struct SpawnSpec {
  static constexpr uint64_t kMagic = 0x6e777073'616b6564u;  // "dekaspwn"
  static constexpr uint64_t kBytesMax = 16 << 20;
  static constexpr uint32_t kDescriptorsMax = 4;

  uint64_t magic = kMagic;
  uint64_t bytes = 0;  // of all of it
  uint64_t program = 0;
  uint64_t arguments = 0;  // argv, with argv[0]; not none
  uint64_t arguments_count = 0;
  uint64_t environment = 0;
  uint64_t environment_count = 0;
  uint64_t directory = 0;  // 0: the keeper's
  uint32_t session = 0;    // spawn::Session
  uint32_t has_user = 0;
  uint32_t user = 0;
  uint32_t has_group = 0;
  uint32_t group = 0;
  uint32_t has_limit = 0;  // RLIMIT_NOFILE; 0: that with which the keeper was started
  uint64_t limit_soft = 0;
  uint64_t limit_hard = 0;
  // The number that each of the child's descriptors gets, in the order they come.
  uint32_t descriptors_count = 0;
  int32_t descriptors[kDescriptorsMax] = {};
  uint32_t unused = 0;
};

static_assert(sizeof(SpawnSpec) == 128);

// The first page of the agent file: a memfd of kBytes that the keeper makes, all zero, and every
// agent maps.
struct AgentFile {
  static constexpr uint64_t kBytes = 1 << 20;

  // Stored by the agent's loop, at least once a second while it runs; the keeper looks only.
  uint64_t heartbeat = 0;
  uint64_t unused[7] = {};
  // What the agent keeps begins here.
};
static_assert(sizeof(AgentFile) == 64);

}  // namespace deka::keeper

#endif  // KEEPER_PROTOCOL_H_
