#include "sdk/dekactl/output.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <string>

#include "gtest/gtest.h"
#include "sdk/dekactl/progress.h"

namespace deka::dekactl {
namespace {

class Pipe {
 public:
  Pipe() { EXPECT_EQ(pipe(ends_), 0); }
  ~Pipe() {
    close(ends_[1]);
    CloseReader();
  }
  int writer() const { return ends_[1]; }
  std::string Read() const {
    char buffer[4096];
    const ssize_t count = read(ends_[0], buffer, sizeof(buffer));
    return count < 0 ? "" : std::string(buffer, static_cast<size_t>(count));
  }
  bool IsEmpty() const {
    fcntl(ends_[0], F_SETFL, O_NONBLOCK);
    return Read().empty();
  }
  void CloseReader() {
    if (ends_[0] >= 0) {
      close(ends_[0]);
      ends_[0] = -1;
    }
  }

 private:
  int ends_[2];
};

// The program's side of a pseudo-terminal, and what a person would see of it.
class Terminal {
 public:
  Terminal() : screen_(posix_openpt(O_RDWR | O_NOCTTY)) {
    EXPECT_EQ(grantpt(screen_), 0);
    EXPECT_EQ(unlockpt(screen_), 0);
    program_ = open(ptsname(screen_), O_RDWR | O_NOCTTY);
    EXPECT_GE(program_, 0);
  }
  ~Terminal() {
    close(program_);
    close(screen_);
  }
  int program() const { return program_; }
  void SetColumns(unsigned short columns) const {
    const winsize size = {.ws_row = 24, .ws_col = columns, .ws_xpixel = 0, .ws_ypixel = 0};
    EXPECT_EQ(ioctl(screen_, TIOCSWINSZ, &size), 0);
  }
  std::string Read() const {
    char buffer[4096];
    const ssize_t count = read(screen_, buffer, sizeof(buffer));
    return count < 0 ? "" : std::string(buffer, static_cast<size_t>(count));
  }

 private:
  int screen_;
  int program_;
};

class OutputTest : public testing::Test {
 protected:
  void SetUp() override {
    unsetenv("NO_COLOR");
    setenv("TERM", "xterm", 1);
  }
};

TEST_F(OutputTest, IsPlainInAPipe) {
  const Pipe pipe;
  Output output(pipe.writer());
  EXPECT_FALSE(output.terminal());
  EXPECT_FALSE(output.colored());
  output.Status("not for a pipe");
  output.Line("a line");
  EXPECT_EQ(pipe.Read(), "a line\n");
}

TEST_F(OutputTest, HasColorsOnATerminal) {
  const Terminal terminal;
  EXPECT_TRUE(Output(terminal.program()).colored());
}

TEST_F(OutputTest, HasNoColorsWhereNobodyWantsThem) {
  const Terminal terminal;
  setenv("NO_COLOR", "1", 1);
  EXPECT_FALSE(Output(terminal.program()).colored());
  setenv("NO_COLOR", "", 1);
  EXPECT_TRUE(Output(terminal.program()).colored()) << "an empty NO_COLOR says nothing";
  setenv("TERM", "dumb", 1);
  EXPECT_FALSE(Output(terminal.program()).colored());
}

TEST_F(OutputTest, ALineReplacesAStatus) {
  const Terminal terminal;
  Output output(terminal.program());
  output.Status("waiting");
  EXPECT_EQ(terminal.Read(), "\r\x1b[Kwaiting");
  output.Line("done");
  EXPECT_EQ(terminal.Read(), "\r\x1b[Kdone\r\n");
}

TEST_F(OutputTest, AStatusHasOneRow) {
  const Terminal terminal;
  Output output(terminal.program());
  terminal.SetColumns(8);
  output.Status("ééééééééé");
  EXPECT_EQ(terminal.Read(), "\r\x1b[Kééééééé");
  output.Status("\x1b[2J\n");
  EXPECT_EQ(terminal.Read(), "\r\x1b[K\\x1b[2J") << "written out, then cut";
  terminal.SetColumns(0);
  output.Status(std::string(100, 'x'));
  EXPECT_EQ(terminal.Read(), "\r\x1b[K" + std::string(79, 'x'));
}

TEST_F(OutputTest, ATerminalThatCannotTakeAStatusAwayIsShownNone) {
  const Terminal terminal;
  setenv("TERM", "dumb", 1);
  Output output(terminal.program());
  output.Status("waiting");
  output.Status("");
  output.Line("done");
  EXPECT_EQ(terminal.Read(), "done\r\n");
}

TEST_F(OutputTest, KeepsTheFirstError) {
  signal(SIGPIPE, SIG_IGN);
  Pipe pipe;
  Output output(pipe.writer());
  EXPECT_EQ(output.error(), 0);
  pipe.CloseReader();
  output.Line("to nobody");
  EXPECT_EQ(output.error(), EPIPE);
}

TEST_F(OutputTest, ProgressIsShownWhenASecondIsOver) {
  const Terminal terminal;
  Output output(terminal.program());
  {
    const Progress progress(output, "waiting for it");
    EXPECT_EQ(terminal.Read(), "\r\x1b[Kwaiting for it, 1 s");
  }
  EXPECT_EQ(terminal.Read(), "\r\x1b[K");
}

TEST_F(OutputTest, ProgressOfWhatIsQuickIsNotShown) {
  const Terminal terminal;
  Output output(terminal.program());
  { const Progress progress(output, "waiting for it"); }
  output.Line("done");
  EXPECT_EQ(terminal.Read(), "done\r\n");
}

TEST_F(OutputTest, ProgressIsSilentInAPipe) {
  const Pipe pipe;
  Output output(pipe.writer());
  { const Progress progress(output, "waiting for it"); }
  EXPECT_TRUE(pipe.IsEmpty());
}

TEST(PaintTest, SurroundsTextWithItsColor) {
  EXPECT_EQ(Paint(true, Color::kRed, "x"), "\x1b[31mx\x1b[0m");
  EXPECT_EQ(Paint(true, Color::kNone, "x"), "x");
  EXPECT_EQ(Paint(false, Color::kRed, "x"), "x");
}

TEST(PrintableTest, LeavesTextAsItIs) {
  EXPECT_EQ(Printable(""), "");
  EXPECT_EQ(Printable("a\tb\\n"), "a\tb\\n");
  EXPECT_EQ(Printable("é漢😀"), "é漢😀");
}

TEST(PrintableTest, WritesOutWhatMovesACursor) {
  EXPECT_EQ(Printable("\x1b[2J"), "\\x1b[2J");
  EXPECT_EQ(Printable(std::string_view("a\r\nb\0c\x7f", 7)), "a\\r\\nb\\x00c\\x7f");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "2J"),
            "\\xc2\\x9b2J")
      << "a control character beyond ASCII";
  EXPECT_EQ(Printable("\xc2\xa0"), "\xc2\xa0");
  EXPECT_EQ(Printable("\xe2\x80\xae"), "\\xe2\\x80\\xae") << "shows what follows backwards";
}

TEST(PrintableTest, WritesOutWhatIsNoUtf8) {
  EXPECT_EQ(Printable("\xff"
                      "a"),
            "\\xffa");
  EXPECT_EQ(Printable("\xe2\x82"), "\\xe2\\x82") << "cut in the middle of a character";
  EXPECT_EQ(Printable("\xc0\xaf"), "\\xc0\\xaf") << "an overlong form";
  EXPECT_EQ(Printable("\xed\xa0\x80"), "\\xed\\xa0\\x80") << "a surrogate";
  EXPECT_EQ(Printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80") << "beyond Unicode";
}

}  // namespace
}  // namespace deka::dekactl
