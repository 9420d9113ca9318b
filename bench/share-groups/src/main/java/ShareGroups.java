import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicLongArray;
import java.util.concurrent.atomic.AtomicReference;
import java.util.stream.Collectors;
import java.util.stream.LongStream;

import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.AcknowledgeType;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaShareConsumer;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/** A share group of Kafka as one side of the comparison. The commands stand in bench/README.md. */
public final class ShareGroups {
    private static final String KAFKA = System.getenv("KAFKAQ_TEST_KAFKA");
    private static final int PARTITIONS = 6;
    private static final int CONSUMERS = 6;

    public static void main(String[] words) throws Exception {
        String command = words[0];
        String queue = words[1];
        int[] numbers = Arrays.stream(words).skip(2).mapToInt(Integer::parseInt).toArray();
        createTopic(queue);
        switch (command) {
            case "fill" -> fill(queue, numbers[0]);
            case "call" -> call(queue, numbers[0], numbers[1]);
            case "drain" -> drain(queue, numbers[0], numbers[1], numbers[2]);
            case "pace" -> pace(queue, numbers[0], numbers[1], numbers[2], numbers[3]);
            default -> throw new IllegalArgumentException(command);
        }
        System.in.readAllBytes();
        // Consumers and their threads end with the process.
        Runtime.getRuntime().halt(0);
    }

    private static void createTopic(String name) throws Exception {
        try (Admin admin = Admin.create(Map.<String, Object>of("bootstrap.servers", KAFKA))) {
            try {
                admin.createTopics(List.of(new NewTopic(name, PARTITIONS, (short) 1))).all().get();
            } catch (ExecutionException e) {
                if (!(e.getCause() instanceof TopicExistsException)) {
                    throw e;
                }
            }
            var fromTheFirst = new AlterConfigOp(
                    new ConfigEntry("share.auto.offset.reset", "earliest"), AlterConfigOp.OpType.SET);
            var group = new ConfigResource(ConfigResource.Type.GROUP, name);
            admin.incrementalAlterConfigs(Map.of(group, List.of(fromTheFirst))).all().get();
        }
    }

    /** Idempotent, with acks=all: both are the defaults. */
    private static KafkaProducer<byte[], byte[]> producer() {
        return new KafkaProducer<>(
                Map.<String, Object>of("bootstrap.servers", KAFKA),
                new ByteArraySerializer(),
                new ByteArraySerializer());
    }

    /** 100 bytes that begin with the task's number. */
    private static ProducerRecord<byte[], byte[]> task(String queue, int number) {
        String payload = String.format("%010d", number) + "x".repeat(90);
        return new ProducerRecord<>(queue, payload.getBytes(StandardCharsets.US_ASCII));
    }

    private static int numberOf(byte[] payload) {
        return Integer.parseInt(new String(payload, 0, 10, StandardCharsets.US_ASCII));
    }

    private static void fill(String queue, int tasks) throws Exception {
        var producer = producer();
        // The first one connects, and is not counted.
        producer.send(task(queue, 0)).get();
        var failed = new AtomicReference<Exception>();
        sayBegin();
        long start = System.nanoTime();
        for (int number = 1; number < tasks; number++) {
            producer.send(task(queue, number), (metadata, error) -> {
                if (error != null) {
                    failed.set(error);
                }
            });
        }
        producer.flush();
        if (failed.get() != null) {
            throw failed.get();
        }
        sayEnd(tasks - 1, System.nanoTime() - start, "");
    }

    private static void call(String queue, int tasks, int callers) throws Exception {
        var producer = producer();
        producer.send(task(queue, 0)).get();
        ExecutorService pool = Executors.newFixedThreadPool(callers);
        sayBegin();
        long start = System.nanoTime();
        List<Future<?>> calling = new ArrayList<>();
        for (int caller = 0; caller < callers; caller++) {
            int from = caller;
            calling.add(pool.submit(() -> {
                for (int number = from; number < tasks; number += callers) {
                    producer.send(task(queue, number)).get();
                }
                return null;
            }));
        }
        for (Future<?> caller : calling) {
            caller.get();
        }
        sayEnd(tasks, System.nanoTime() - start, "");
    }

    private static void drain(String queue, int tasks, int jobs, int hold) throws Exception {
        var executions = new Executions(tasks);
        work(queue, jobs, hold, executions);
        executions.all.await();
        sayEnd(tasks, executions.took(), ",\"executions\":" + executions.count.get());
    }

    private static void pace(String queue, int rate, int uncounted, int counted, int jobs) throws Exception {
        int tasks = uncounted + counted;
        var executions = new Executions(tasks + PARTITIONS);
        work(queue, jobs, 0, executions);
        var producer = producer();
        awaitPartitions(queue, tasks, producer, executions);
        long[] sent = new long[tasks];
        long start = System.nanoTime();
        for (int number = 0; number < tasks; ) {
            long due = Math.min(tasks, (System.nanoTime() - start) * rate / 1_000_000_000L);
            for (; number < due; number++) {
                sent[number] = System.nanoTime();
                producer.send(task(queue, number), (metadata, error) -> {
                    if (error != null) {
                        fail(error);
                    }
                });
            }
            Thread.sleep(1);
        }
        executions.all.await();
        String late = LongStream.range(uncounted, tasks)
                .map(number -> (executions.begun.get((int) number) - sent[(int) number]) / 1000)
                .mapToObj(Long::toString)
                .collect(Collectors.joining(","));
        sayEnd(tasks, executions.took(), ",\"executions\":" + executions.count.get() + ",\"late_us\":[" + late + "]");
    }

    /** The group gives its members their partitions some seconds after they joined. */
    private static void awaitPartitions(
            String queue, int first, KafkaProducer<byte[], byte[]> producer, Executions executions)
            throws Exception {
        for (int partition = 0; partition < PARTITIONS; partition++) {
            byte[] payload = task(queue, first + partition).value();
            producer.send(new ProducerRecord<>(queue, partition, null, payload)).get();
        }
        for (int partition = 0; partition < PARTITIONS; partition++) {
            while (executions.begun.get(first + partition) == 0) {
                Thread.sleep(10);
            }
        }
        executions.first.set(System.nanoTime());
    }

    /** Which tasks have been executed. */
    private static final class Executions {
        /** When the first execution of each task began. */
        final AtomicLongArray begun;
        final AtomicInteger count = new AtomicInteger();
        final CountDownLatch all;
        final AtomicLong first = new AtomicLong();
        volatile long last;

        Executions(int tasks) {
            begun = new AtomicLongArray(tasks);
            all = new CountDownLatch(tasks);
        }

        void execute(byte[] payload, int hold) {
            long now = System.nanoTime();
            count.incrementAndGet();
            if (first.compareAndSet(0, now)) {
                sayBegin();
            }
            boolean isFirst = begun.compareAndSet(numberOf(payload), 0, now);
            if (hold > 0) {
                try {
                    Thread.sleep(hold);
                } catch (InterruptedException e) {
                    throw new IllegalStateException(e);
                }
            }
            if (isFirst) {
                last = System.nanoTime();
                all.countDown();
            }
        }

        long took() {
            return last - first.get();
        }
    }

    /** Consumers that acknowledge each record. Tasks that take time run on so many threads as there may be jobs. */
    private static void work(String queue, int jobs, int hold, Executions executions) {
        ExecutorService pool = hold > 0 ? Executors.newFixedThreadPool(jobs) : null;
        for (int i = 0; i < CONSUMERS; i++) {
            var thread = new Thread(() -> consume(queue, hold, pool, executions));
            thread.setDaemon(true);
            thread.start();
        }
    }

    private static void consume(String queue, int hold, ExecutorService pool, Executions executions) {
        Map<String, Object> settings = Map.of(
                "bootstrap.servers", KAFKA,
                "group.id", queue,
                "share.acknowledgement.mode", "explicit");
        try (var consumer = new KafkaShareConsumer<>(
                settings, new ByteArrayDeserializer(), new ByteArrayDeserializer())) {
            consumer.subscribe(List.of(queue));
            while (true) {
                ConsumerRecords<byte[], byte[]> records = consumer.poll(Duration.ofSeconds(1));
                if (pool == null) {
                    for (ConsumerRecord<byte[], byte[]> record : records) {
                        executions.execute(record.value(), 0);
                        consumer.acknowledge(record, AcknowledgeType.ACCEPT);
                    }
                } else {
                    List<Future<?>> running = new ArrayList<>();
                    for (ConsumerRecord<byte[], byte[]> record : records) {
                        running.add(pool.submit(() -> executions.execute(record.value(), hold)));
                    }
                    for (Future<?> one : running) {
                        one.get();
                    }
                    records.forEach(record -> consumer.acknowledge(record, AcknowledgeType.ACCEPT));
                }
                consumer.commitAsync();
            }
        } catch (Exception e) {
            fail(e);
        }
    }

    private static void fail(Exception error) {
        error.printStackTrace();
        Runtime.getRuntime().halt(1);
    }

    private static void sayBegin() {
        System.out.println("{\"event\":\"begin\"}");
    }

    private static void sayEnd(int tasks, long nanos, String more) {
        System.out.println("{\"event\":\"end\",\"tasks\":" + tasks + ",\"seconds\":" + nanos / 1e9 + more + "}");
    }
}
