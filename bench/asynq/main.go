// asynq as one side of the comparison. The commands stand in bench/README.md.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
)

const (
	kind = "nothing"
	// asynq has no call for many tasks at once.
	fillers = 64
	// Of a paced publisher: calls that are under way at most.
	underWay = 1024
	// By default it is a second, which would be the latency that is measured.
	checkInterval = 10 * time.Millisecond
)

func main() {
	command, queue := os.Args[1], os.Args[2]
	var numbers []int
	for _, word := range os.Args[3:] {
		number, err := strconv.Atoi(word)
		check(err)
		numbers = append(numbers, number)
	}
	redis, err := asynq.ParseRedisURI(os.Getenv("KAFKAQ_TEST_REDIS"))
	check(err)
	switch command {
	case "fill":
		call(redis, queue, numbers[0], fillers)
	case "call":
		call(redis, queue, numbers[0], numbers[1])
	case "drain":
		drain(redis, queue, numbers[0], numbers[1], time.Duration(numbers[2])*time.Millisecond)
	case "pace":
		pace(redis, queue, numbers[0], numbers[1], numbers[2], numbers[3])
	default:
		log.Fatalf("no command %s", command)
	}
	_, err = io.ReadAll(os.Stdin)
	check(err)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// 100 bytes that begin with the task's number.
func task(queue string, number int) *asynq.Task {
	payload := fmt.Sprintf("%010d%s", number, strings.Repeat("x", 90))
	return asynq.NewTask(kind, []byte(payload), asynq.Queue(queue))
}

func call(redis asynq.RedisConnOpt, queue string, tasks, callers int) {
	client := asynq.NewClient(redis)
	sayBegin()
	start := time.Now()
	var calling sync.WaitGroup
	for caller := range callers {
		calling.Add(1)
		go func() {
			defer calling.Done()
			for number := caller; number < tasks; number += callers {
				_, err := client.Enqueue(task(queue, number))
				check(err)
			}
		}()
	}
	calling.Wait()
	sayEnd(tasks, time.Since(start), "")
}

func drain(redis asynq.RedisConnOpt, queue string, tasks, jobs int, hold time.Duration) {
	executions := newExecutions(tasks)
	work(redis, queue, jobs, hold, executions)
	<-executions.all
	sayEnd(tasks, executions.took(), fmt.Sprintf(`,"executions":%d`, executions.count.Load()))
}

func pace(redis asynq.RedisConnOpt, queue string, rate, uncounted, counted, jobs int) {
	tasks := uncounted + counted
	executions := newExecutions(tasks)
	work(redis, queue, jobs, 0, executions)
	client := asynq.NewClient(redis)
	calls := make(chan struct{}, underWay)
	sent := make([]int64, tasks)
	start := time.Now()
	for number := 0; number < tasks; time.Sleep(time.Millisecond) {
		due := min(tasks, int(time.Since(start).Seconds()*float64(rate)))
		for ; number < due; number++ {
			calls <- struct{}{}
			sent[number] = executions.now()
			go func(task *asynq.Task) {
				_, err := client.Enqueue(task)
				check(err)
				<-calls
			}(task(queue, number))
		}
	}
	<-executions.all
	var late []string
	for number := uncounted; number < tasks; number++ {
		took := executions.begun[number].Load() - sent[number]
		late = append(late, strconv.FormatInt(took/1000, 10))
	}
	sayEnd(tasks, executions.took(),
		fmt.Sprintf(`,"executions":%d,"late_us":[%s]`, executions.count.Load(), strings.Join(late, ",")))
}

// Which tasks have been executed. Times are nanoseconds since the epoch.
type executions struct {
	epoch       time.Time
	begun       []atomic.Int64
	count, left atomic.Int64
	first, last atomic.Int64
	all         chan struct{}
}

func newExecutions(tasks int) *executions {
	e := &executions{epoch: time.Now(), begun: make([]atomic.Int64, tasks), all: make(chan struct{})}
	e.left.Store(int64(tasks))
	return e
}

func (e *executions) now() int64 { return time.Since(e.epoch).Nanoseconds() }

func (e *executions) took() time.Duration { return time.Duration(e.last.Load() - e.first.Load()) }

func (e *executions) execute(payload []byte, hold time.Duration) error {
	now := e.now()
	e.count.Add(1)
	if e.first.CompareAndSwap(0, now) {
		sayBegin()
	}
	number, err := strconv.Atoi(string(payload[:10]))
	if err != nil {
		return err
	}
	isFirst := e.begun[number].CompareAndSwap(0, now)
	time.Sleep(hold)
	if isFirst && e.left.Add(-1) == 0 {
		e.last.Store(e.now())
		close(e.all)
	}
	return nil
}

func work(redis asynq.RedisConnOpt, queue string, jobs int, hold time.Duration, executions *executions) {
	server := asynq.NewServer(redis, asynq.Config{
		Concurrency:       jobs,
		Queues:            map[string]int{queue: 1},
		TaskCheckInterval: checkInterval,
		LogLevel:          asynq.ErrorLevel,
	})
	handlers := asynq.NewServeMux()
	handlers.HandleFunc(kind, func(_ context.Context, task *asynq.Task) error {
		return executions.execute(task.Payload(), hold)
	})
	check(server.Start(handlers))
}

func sayBegin() { fmt.Println(`{"event":"begin"}`) }

func sayEnd(tasks int, took time.Duration, more string) {
	fmt.Printf(`{"event":"end","tasks":%d,"seconds":%f%s}`+"\n", tasks, took.Seconds(), more)
}
