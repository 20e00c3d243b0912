//! After a leap of the clock nothing is old until it is waited out.

use super::*;

/// By a clock that has leapt, uploads that clients are at are old.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_given_out_until_a_leap_of_the_clock_is_waited_out() {
    // Longer than a busy machine takes for the two passes.
    let hold = Duration::from_secs(10);
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
    until_ok("it goes on when that was waited out", async || {
        let (has_upload, waiting) =
            (world.store.upload(world.bucket, "upload", id).await.is_ok(), world.waiting().await);
        if !has_upload && waiting == 0 {
            return Ok(());
        }
        world.dispatcher.expire_uploads(Some(UPLOAD_AGE_MS)).await.unwrap();
        world.dispatcher.reclaim(GRACE_MS).await.unwrap();
        // The part of the upload is dereferenced by the next look.
        world.go_on(100);
        Err(format!("the upload is there: {has_upload}, contents to be reclaimed: {waiting}"))
    })
    .await;
}
