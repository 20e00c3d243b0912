"""Consumes events of Holdfast with Apache RocketMQ's own client for Python (PyPI: rocketmq-python-client 5.x).

    python events_consumer.py PROXY TOPIC GROUP [TAGS] [ACCESS_KEY SECRET_KEY]
    python events_consumer.py 127.0.0.1:8081 holdfast-objects thumbnails 'ObjectCreated:Put || ObjectCreated:Copy'

The client speaks gRPC to RocketMQ's proxy (ProxyStartup, port 8081), not to brokers. A message that is not acknowledged within
its invisible duration comes again, after later ones, so the work is done before the acknowledgement, and is safe to do twice.

It keeps up with the latest state of each object: what is not newer than what it has seen of the object is dropped, be it a repetition
or an older event that came late. A consumer that needs every event keeps ids instead.
"""

import json
import sys
import time

from rocketmq import ClientConfiguration, Credentials, FilterExpression, SimpleConsumer

INVISIBLE_SECONDS = 30
OBJECTS_MAX = 100_000


def main(proxy, topic, group, tags="*", access_key=None, secret_key=None):
    credentials = Credentials(access_key, secret_key) if access_key else Credentials()
    consumer = SimpleConsumer(ClientConfiguration(proxy, credentials), group, {topic: FilterExpression(tags)})
    consumer.startup()
    # The highest sequencer of each object. A real consumer keeps it with its results, in one transaction with them; this one forgets
    # it when it ends, and the objects that it heard of least lately when they are too many.
    newest = {}
    try:
        while True:
            try:
                messages = consumer.receive(16, INVISIBLE_SECONDS) or []
            except Exception as error:  # The proxy may not know this client yet, or be gone for a while.
                print(error, file=sys.stderr)
                time.sleep(1)
                continue
            for message in messages:
                record = json.loads(message.body)["Records"][0]
                place = (record["s3"]["bucket"]["name"], record["s3"]["object"]["key"])
                sequencer = record["s3"]["object"]["sequencer"]
                if sequencer > newest.get(place, ""):
                    # The work, and only then what says that it is done.
                    print(record["holdfast"]["eventId"], record["eventName"], *place, flush=True)
                    newest.pop(place, None)
                    newest[place] = sequencer
                    if len(newest) > OBJECTS_MAX:
                        del newest[next(iter(newest))]
                consumer.ack(message)
    finally:
        consumer.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
