package bench_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// workerEnv makes the test binary a worker: a process in a node's namespaces that carries out orders and measures them, so
// that the way into the node costs nobody anything.
const workerEnv = "PHOENIX_BENCH_WORKER"

// An order is what a worker is to do: a command, or the bare steps.
type order struct {
	Argv  []string
	Env   []string // besides the worker's
	Times int
	Pipe  bool // count what the command writes, through a pipe, instead of keeping it

	Steps *steps
}

// An answer is what came of an order.
type answer struct {
	Took   []time.Duration
	Output string
	Bytes  int64
	Err    string
}

// steps are what it takes to give containers another GPU, done in a loop and nothing else: the limit.
type steps struct {
	CTIDs       []int32
	GPU         int
	Stop, Start []string // commands without the CTID
}

// work carries out orders until there are no more, and returns the exit status.
func work(in io.Reader, out io.Writer) int {
	orders, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o order
		err := orders.Decode(&o)
		if errors.Is(err, io.EOF) {
			return 0
		}
		if err == nil {
			err = answers.Encode(o.carryOut())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "worker:", err)
			return 1
		}
	}
}

func (o order) carryOut() (a answer) {
	for range max(o.Times, 1) {
		begin := time.Now()
		var err error
		switch {
		case o.Steps != nil:
			err = o.Steps.run()
		case o.Pipe:
			a.Bytes, err = o.count()
		default:
			a.Output, err = run(o.Env, o.Argv...)
		}
		a.Took = append(a.Took, time.Since(begin))
		if err != nil {
			a.Err = err.Error()
			return a
		}
	}
	return a
}

// run runs a command and returns what it wrote, which is in the error too. The output goes to a file, so that nobody waits
// for what a command leaves behind.
func run(env []string, argv ...string) (string, error) {
	output, err := os.CreateTemp("", "phoenix-bench-")
	if err != nil {
		return "", err
	}
	defer os.Remove(output.Name())
	defer output.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = output, output
	runErr := cmd.Run()
	b, err := os.ReadFile(output.Name())
	if runErr != nil {
		return "", fmt.Errorf("%q: %w\n%s", argv, runErr, b)
	}
	return string(b), err
}

func (o order) count() (n int64, err error) {
	cmd := exec.Command(o.Argv[0], o.Argv[1:]...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	n, err = io.CopyBuffer(io.Discard, struct{ io.Reader }{stdout}, make([]byte, 64<<10))
	return n, errors.Join(err, cmd.Wait())
}

func (s steps) run() error {
	for _, ctid := range s.CTIDs {
		id := strconv.Itoa(int(ctid))
		conf, err := os.ReadFile(fmt.Sprintf("%s/%d/%s.conf", prepared, s.GPU, id))
		if err != nil {
			return err
		}
		path := "/etc/pve/lxc/" + id + ".conf"
		if err := os.WriteFile(path+".new", conf, 0o640); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
		for _, argv := range [][]string{append(s.Stop, id), append(s.Start, id), {"lxc-attach", "-n", id, "--", "true"}} {
			if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%q: %w\n%s", argv, err, out)
			}
		}
	}
	return nil
}
