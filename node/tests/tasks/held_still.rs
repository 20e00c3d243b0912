//! After a leap of the clock nothing is old until it is waited out.

use super::*;

/// By a clock that has leapt, uploads that clients are at are old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_given_out_until_a_leap_of_the_clock_is_waited_out() {
    let hold = Duration::from_secs(2);
    let mut world = World::new(DispatchSettings { hold, ..patient() }).await;
    world.employ(consume_settings());
    world.put("key").await;
    world.delete("key").await;
    let (id, _) = world.upload("upload").await;
    world.go_on(UPLOAD_AGE_MS + 1);
    let uploads = world.dispatcher.expire_uploads(Some(UPLOAD_AGE_MS)).await.unwrap();
    let contents = world.dispatcher.reclaim(GRACE_MS).await.unwrap();
    assert_eq!([uploads, contents], [(PassStats::default(), PassEnd::Done); 2]);
    assert!(world.bus.published().is_empty());

    // Nobody has set it right.
    let begun = Instant::now();
    while world.store.upload(world.bucket, "upload", id).await.is_ok() || world.waiting().await > 0 {
        assert!(begun.elapsed() < PATIENCE, "it holds still for ever");
        world.dispatcher.expire_uploads(Some(UPLOAD_AGE_MS)).await.unwrap();
        world.dispatcher.reclaim(GRACE_MS).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        // The part of the upload is dereferenced by now.
        world.go_on(100);
    }
}
