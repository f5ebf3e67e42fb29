// The process that outlives the agent: starts it and the children, waits for all of them, holds
// duplicates of what must not be lost, and puts a spare in a dead agent's place. protocol.h is what
// it speaks.
//
//   signals, ended processes --+
//   what agents ask for      --+--> tables --> Arrange: who starts, who ends --> Tell: what is due
//   time                     --+
//
// An agent's life:
//
//   Start --> spare --(the agent before was waited for)--> next --(all is told, kGo)--> agent
//
// The first agent, and one for which no spare was there, is a spare that is next at once.
//
// Nothing that is due to an agent is queued: tables say who knows what, and Tell() goes on where
// the socket was full. An agent that does not read keeps nobody waiting but itself: its next
// request is read when the answer to the last one is written.
//
// Thread: one. It waits in poll() alone, and in spawn::Spawn() for an exec.
//
// Uses nothing but libc, and no C++ runtime.
#ifndef KEEPER_KEEPER_H_
#define KEEPER_KEEPER_H_

#include <sys/resource.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>

#include "keeper/packet.h"
#include "keeper/protocol.h"
#include "spawn/spawn.h"

namespace deka::keeper {

class Keeper {
 public:
  // Times are CLOCK_MONOTONIC.
  struct Options {
    int64_t look_ms = 1000;           // between two looks at the agent's heartbeat
    int64_t looks_max = 5;            // in which it did not change: the agent hangs
    int64_t ready_ms_max = 30000;     // from an agent's start to its kReady
    int64_t mail_ms_max = 5000;       // in which a spare must have taken some of its mail
    int64_t stop_ms_max = 20000;      // from the first kStop to the agent's exit
    int64_t end_ms_max = 10000;       // from SIGTERM to SIGKILL, when the keeper ends the children
    int64_t crash_window_ms = 60000;  // with kCrashesMax crashes in it, starts are rare:
    int64_t crash_pause_ms = 10000;   // this long from one to the next
    int64_t descriptors = 128 << 10;  // its limit, if the system permits it; else the hard limit
  };

  static constexpr unsigned kCrashesMax = 10;

  // `command` is the agent's argv, ended by a null pointer: a path, and its arguments.
  // `environment` is the agent's and ended alike; DEKA_KEEPER_FD is added.
  Keeper(const Options& options, char** command, char** environment);

  // Frees what it holds. Ends nobody: Run() did, or the process ends.
  ~Keeper();

  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;

  // Until the agent has stopped. Returns the exit code: the agent's, or 1 if the keeper had to end
  // the children or could not start. The process is the keeper's: signals, descriptor limit and
  // all children are as it needs them, and the caller exits next.
  int Run();

 private:
  // Memory, channel, stdout, stderr and pidfd, in the order of the bits of Holds; -1 is none.
  static constexpr unsigned kDescriptorsOfChild = 5;

  struct Child {
    uint64_t id = 0;
    pid_t pid = 0;
    int status = 0;
    bool exited = false;
    bool acknowledged = false;
    bool released = false;
    bool forgotten = false;  // stays until it has exited and nobody is to be told
    uint8_t known[2] = {};   // what agents_[0] and [1] have been told: Known
    int descriptors[kDescriptorsOfChild] = {-1, -1, -1, -1, -1};
  };
  enum Known : uint8_t { kKnowsChild = 1, kKnowsExit = 2, kKnowsRelease = 4 };

  struct Slot {
    int* descriptors;
    size_t count;
  };

  // What agents are started from: a file, open so that it stays the same one.
  struct Program {
    char* path = nullptr;
    int descriptor = -1;
  };

  struct Agent {
    pid_t pid = 0;  // 0: there is none
    int pidfd = -1;
    int socket = -1;      // -1 too when the agent has closed its end
    uint64_t number = 0;  // 1 for the first agent
    bool candidate = false;
    bool ready = false;
    bool next = false;      // kGo is due when all else is told
    bool went = false;      // was told kGo
    bool deaf = false;      // takes nothing any more
    bool hung = false;      // killed for it
    bool replaced = false;  // killed for its successor's sake
    bool spared = false;    // hangs, but is traced; said once

    bool file_told = false;
    bool fed_told = false;
    uint32_t slots_told = 0;
    uint32_t stop_told = 0;
    pid_t spare_told = 0;
    bool behind = true;  // some child's Known is not all
    bool answer_due = false;
    Message answer;
    bool blocked = false;  // its socket was full

    int64_t started_at = 0;  // as what it is: a spare, or the agent
    int64_t ready_by = 0;
    int64_t mail_by = 0;    // 0: takes its mail
    int64_t closed_by = 0;  // its end is closed: it is expected to be gone by then
    int64_t retry_at = 0;   // the kernel had no room for the descriptors
    int64_t look_at = 0;
    int64_t looks = 0;  // that found the same heartbeat
    uint64_t heartbeat = 0;
  };

  // Ends that a process caused itself.
  struct Crashes {
    int64_t at[kCrashesMax] = {};
    unsigned count = 0;  // of all
    bool often = false;

    // Counts one of a process that was started at `started_at`. Returns when the next may start.
    int64_t Add(const Options& options, int64_t started_at, int64_t now);
  };

  bool Prepare();
  bool PrepareSignals();
  bool MakeAgentFile();
  bool MakeEnvironment();
  void RaiseDescriptorLimit();
  void Wait();
  int64_t NextDeadline() const;
  void Finish(int exit_code);

  void Arrange();
  void ArrangeStarts();
  void ArrangeStop();
  void ArrangeEnd();
  void Watch(Agent& agent);
  void Look(Agent& agent);
  void Overdue(Agent& agent, const char* why);
  bool Start(Agent& agent, const Program& program);
  void Drop(Agent& agent);
  void TakeOver();

  void TakeSignals();
  void WaitForProcesses();
  void AgentEnded(int status);
  void SpareEnded(int status);
  // Counts one, says so when they come too often. Returns when the next may start.
  int64_t Crashed(Crashes& crashes, const char* what, int64_t started_at);
  void Stop(int signal_number);
  void EndChildren();
  void KillChildren();
  size_t Running() const;

  bool OpenProgram(const char* path, Program& program);
  void WantUpgrade(int descriptor);
  void RefuseUpgrade(Refusal why, const char* text);
  static void CloseProgram(Program& program);

  void Hear(Agent& agent, bool to_the_end);
  void Take(Agent& agent, Packet& packet);
  void TakeReady(Agent& agent, const Message& message);
  void TakeKeep(Packet& packet);
  void TakeSpawn(Agent& agent, Packet& packet);
  spawn::Started StartChild(Packet& packet);

  void Tell(Agent& agent);
  bool TellAnswer(Agent& agent);
  bool TellChildren(Agent& agent);
  bool TellChild(Agent& agent, Child& child);
  bool TellGo(Agent& agent);
  void TellNews(Agent& agent);
  bool Send(Agent& agent, const Message& message, const int* descriptors, size_t count);

  Child* Find(uint64_t id);
  bool MakeRoom();
  void Changed();
  static void Empty(Slot& slot);
  void Release(Child& child, bool memory_too);
  bool EraseIfDone(size_t index);
  uint8_t& KnownTo(const Agent& agent, Child& child) { return child.known[&agent - agents_]; }

  const Options options_;
  char** const command_;
  char** const environment_;
  char** agents_environment_ = nullptr;
  rlimit limit_at_start_ = {};
  int64_t now_ = 0;

  int signals_ = -1;
  int agent_file_ = -1;
  const volatile uint64_t* heartbeat_ = nullptr;

  Agent agents_[2];
  Agent* agent_ = &agents_[0];
  Agent* spare_ = &agents_[1];
  uint64_t agents_count_ = 0;
  int64_t agent_at_ = 0;  // when one may start, if there is none
  int64_t spare_at_ = 0;
  Crashes agent_crashes_;
  Crashes spare_crashes_;
  bool was_ready_ = false;  // some agent was
  uint64_t layout_ = 0;     // of agents that were

  Program program_;
  Program upgrade_;  // the program of the candidate, which is wanted
  Refusal refusal_ = {};

  Child* children_ = nullptr;
  size_t children_count_ = 0;
  size_t children_room_ = 0;
  Slot slots_[kSlotsMax] = {};

  uint32_t stop_ = 0;  // signals to stop: 1, or 2 for more
  int stop_signal_ = 0;
  int64_t stop_by_ = 0;
  bool ending_ = false;  // the children, without an agent
  bool killed_ = false;
  int64_t end_by_ = 0;
  bool finished_ = false;
  int exit_code_ = 1;
};

}  // namespace deka::keeper

#endif  // KEEPER_KEEPER_H_
