// Consumes events of Holdfast with Apache RocketMQ's own client (org.apache.rocketmq:rocketmq-client 5.x):
//
//   java -cp 'jars/*' EventsConsumer.java NAME_SERVERS TOPIC GROUP [TAGS] [ACCESS_KEY SECRET_KEY]
//   java -cp 'jars/*' EventsConsumer.java 127.0.0.1:9876 holdfast-objects thumbnails 'ObjectCreated:Put || ObjectCreated:Copy'
//
// It prints one line an event: queue, offset, event id, name, and the notification; what is a repetition goes to stderr. Holdfast's
// tests run it as it is here.

import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.apache.rocketmq.acl.common.AclClientRPCHook;
import org.apache.rocketmq.acl.common.SessionCredentials;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyContext;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;

public class EventsConsumer {
    private static final int OBJECTS_MAX = 100_000;

    // The highest sequencer of each object. What is not above it is a repetition, which may come after later events. A real consumer
    // keeps it with its results, in one transaction with them: this one forgets it when it ends.
    private static final Map<String, String> NEWEST = new LinkedHashMap<>(16, 0.75f, true) {
        @Override
        protected boolean removeEldestEntry(Map.Entry<String, String> eldest) {
            return size() > OBJECTS_MAX;
        }
    };

    private static void handle(MessageExt message) {
        // The id of the event begins with its sequencer, 16 digits, and the sharding key is the bucket and the key of the object.
        String id = message.getProperty("UNIQ_KEY");
        String object = message.getProperty("__SHARDINGKEY");
        String sequencer = id.substring(0, 16);
        String line = message.getQueueId() + "\t" + message.getQueueOffset() + "\t" + id + "\t" + message.getTags();
        synchronized (NEWEST) {
            if (sequencer.compareTo(NEWEST.getOrDefault(object, "")) <= 0) {
                System.err.println("repeated\t" + line);
                return;
            }
            // The work, and only then what says that it is done.
            System.out.println(line + "\t" + new String(message.getBody(), StandardCharsets.UTF_8));
            NEWEST.put(object, sequencer);
        }
    }

    public static void main(String[] args) throws Exception {
        DefaultMQPushConsumer consumer = args.length > 5
            ? new DefaultMQPushConsumer(args[2], new AclClientRPCHook(new SessionCredentials(args[4], args[5])))
            : new DefaultMQPushConsumer(args[2]);
        consumer.setNamesrvAddr(args[0]);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        // Brokers filter by tag, which is the name of the event.
        consumer.subscribe(args[1], args.length > 3 ? args[3] : "*");
        // Orderly: the events of one object come one after the other, in the order of its changes.
        consumer.registerMessageListener(new MessageListenerOrderly() {
            @Override
            public ConsumeOrderlyStatus consumeMessage(List<MessageExt> messages, ConsumeOrderlyContext context) {
                messages.forEach(EventsConsumer::handle);
                // After the work: what is not acknowledged comes again.
                return ConsumeOrderlyStatus.SUCCESS;
            }
        });
        consumer.start();
        System.out.println("started");
        Thread.currentThread().join();
    }
}
