// BullMQ as one side of the comparison. The commands stand in bench/README.md.
import { Queue, Worker } from 'bullmq';
import { performance } from 'node:perf_hooks';

const KIND = 'nothing';
const AT_ONCE = 1000;
// Of a paced publisher: calls that are under way at most.
const UNDER_WAY = 1024;

const [command, name, ...words] = process.argv.slice(2);
const numbers = words.map(Number);
const { hostname: host, port } = new URL(process.env.KAFKAQ_TEST_REDIS);
const connection = { host, port: Number(port) };
// Otherwise every job that was ever executed stays in Redis.
const defaultJobOptions = { removeOnComplete: true };

const now = () => performance.now();
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const newQueue = () => new Queue(name, { connection, defaultJobOptions });
const sayBegin = () => console.log(JSON.stringify({ event: 'begin' }));
const sayEnd = (tasks, ms, more) =>
  console.log(JSON.stringify({ event: 'end', tasks, seconds: ms / 1000, ...more }));

// 100 characters that begin with the task's number.
const payload = (number) => String(number).padStart(10, '0') + 'x'.repeat(90);

async function fill(tasks) {
  const queue = newQueue();
  await queue.waitUntilReady();
  sayBegin();
  const start = now();
  for (let first = 0; first < tasks; first += AT_ONCE) {
    const jobs = [];
    for (let number = first; number < Math.min(tasks, first + AT_ONCE); number++) {
      jobs.push({ name: KIND, data: payload(number) });
    }
    await queue.addBulk(jobs);
  }
  sayEnd(tasks, now() - start);
}

async function call(tasks, callers) {
  const queue = newQueue();
  await queue.waitUntilReady();
  sayBegin();
  const start = now();
  const caller = async (from) => {
    for (let number = from; number < tasks; number += callers) {
      await queue.add(KIND, payload(number));
    }
  };
  await Promise.all(Array.from({ length: callers }, (_, from) => caller(from)));
  sayEnd(tasks, now() - start);
}

// Executes tasks, and resolves to when each began once all of them have been executed.
function work(tasks, jobs, hold) {
  const begun = new Array(tasks);
  let [first, left, executions] = [undefined, tasks, 0];
  return new Promise((resolve, reject) => {
    const worker = new Worker(
      name,
      async (job) => {
        const started = now();
        executions += 1;
        if (first === undefined) {
          first = started;
          sayBegin();
        }
        const number = Number(job.data.slice(0, 10));
        const isFirst = begun[number] === undefined;
        begun[number] ??= started;
        if (hold > 0) {
          await sleep(hold);
        }
        if (isFirst && --left === 0) {
          resolve({ begun, executions, took: now() - first });
        }
      },
      { connection, concurrency: jobs },
    );
    worker.on('error', reject);
  });
}

async function drain(tasks, jobs, hold) {
  const { executions, took } = await work(tasks, jobs, hold);
  sayEnd(tasks, took, { executions });
}

async function pace(rate, uncounted, counted, jobs) {
  const tasks = uncounted + counted;
  const working = work(tasks, jobs, 0);
  const queue = newQueue();
  await queue.waitUntilReady();
  const sent = [];
  let underWay = 0;
  const start = now();
  while (sent.length < tasks) {
    const due = Math.min(tasks, Math.floor(((now() - start) / 1000) * rate));
    while (sent.length < due && underWay < UNDER_WAY) {
      underWay += 1;
      sent.push(now());
      queue.add(KIND, payload(sent.length - 1)).then(() => (underWay -= 1));
    }
    await sleep(1);
  }
  const { begun, executions, took } = await working;
  const late_us = [];
  for (let number = uncounted; number < tasks; number++) {
    late_us.push(Math.round((begun[number] - sent[number]) * 1000));
  }
  sayEnd(tasks, took, { executions, late_us });
}

await { fill, call, drain, pace }[command](...numbers);
process.stdin.resume();
process.stdin.on('end', () => process.exit());
