// What the keeper says, and what it learns of processes from the kernel.
//
// Uses nothing but libc, and no C++ runtime.
#ifndef KEEPER_PROCESS_H_
#define KEEPER_PROCESS_H_

#include <sys/types.h>

#include <cstdint>

namespace deka::keeper {

enum class Level { kInfo, kWarning, kError };

// One line, as deka-agent writes them, to standard error in one write. Dropped if its reader would
// keep the keeper waiting. What is not to be printed becomes '?'.
__attribute__((format(printf, 2, 3))) void Say(Level level, const char* format, ...);

// Milliseconds of CLOCK_MONOTONIC.
int64_t Now();

// A debugger holds the process.
bool IsTraced(pid_t pid);

// The process ended itself, or what it ran did: an exit, SIGSEGV, SIGABRT and the like. `status` is
// a wait status.
bool IsOwnEnd(int status);

// "exited with code 1", "was ended by signal 9".
struct Ending {
  explicit Ending(int status);
  char text[48];
};

// Opens those of 0 to 2 that are closed: they would become something else's, and children inherit
// them. They answer EBADF to who reads or writes them.
void HoldStandardDescriptors();

}  // namespace deka::keeper

#endif  // KEEPER_PROCESS_H_
