//! The client against a registry in this process that misbehaves on purpose, and against a real one.
mod auth;
mod copies;
mod fake;
mod images;
mod layouts;
mod manifests;
mod mirrors;
mod pushes;
mod reads;
mod real;
mod real_auth;
mod real_faults;
mod redirects;
mod store;
mod tls;
mod tokens;
mod uploads;
