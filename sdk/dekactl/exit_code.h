// How a command ends.
#ifndef SDK_DEKACTL_EXIT_CODE_H_
#define SDK_DEKACTL_EXIT_CODE_H_

namespace deka::dekactl {

inline constexpr int kComplete = 0;
inline constexpr int kError = 1;
inline constexpr int kUsage = 2;
inline constexpr int kNoSuchChild = 3;
inline constexpr int kMissed = 4;  // a gap: not everything was shown

// Of `call`.
inline constexpr int kTimedOut = 5;
inline constexpr int kChildEnded = 6;

// And n: signal n came before it was complete, as Ctrl-C, which is 2.
inline constexpr int kSignalled = 128;

// Of `wait`, whose other codes are the child's: how it ended could not be told.
inline constexpr int kExitUnknown = 125;

}  // namespace deka::dekactl

#endif  // SDK_DEKACTL_EXIT_CODE_H_
