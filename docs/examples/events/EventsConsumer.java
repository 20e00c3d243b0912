// Consumes events of Holdfast with Apache RocketMQ's own client (org.apache.rocketmq:rocketmq-client 5.x):
//
//   java -cp 'jars/*' EventsConsumer.java NAME_SERVERS TOPIC GROUP [TAGS] [ACCESS_KEY SECRET_KEY]
//   java -cp 'jars/*' EventsConsumer.java 127.0.0.1:9876 holdfast-objects thumbnails 'ObjectCreated:Put || ObjectCreated:Copy'
//
// It prints one line an event: queue, offset, event id, name, and the notification. Holdfast's tests run it as it is here.

import java.nio.charset.StandardCharsets;
import java.util.List;
import org.apache.rocketmq.acl.common.AclClientRPCHook;
import org.apache.rocketmq.acl.common.SessionCredentials;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyContext;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;

public class EventsConsumer {
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
                for (MessageExt message : messages) {
                    // The id of the event. A repetition has the same one: do the work only if you have not done it.
                    String id = message.getProperty("UNIQ_KEY");
                    String body = new String(message.getBody(), StandardCharsets.UTF_8);
                    synchronized (System.out) {
                        System.out.println(message.getQueueId() + "\t" + message.getQueueOffset() + "\t" + id + "\t"
                            + message.getTags() + "\t" + body);
                    }
                }
                // After the work: what is not acknowledged comes again.
                return ConsumeOrderlyStatus.SUCCESS;
            }
        });
        consumer.start();
        System.out.println("started");
        Thread.currentThread().join();
    }
}
