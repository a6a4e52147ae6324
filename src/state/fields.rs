//! The parts of serde's serializers that have fields and nothing to say about them: each is serialized as what it is.

/// Implements for a type, with its error, the traits of tuples, structs and their variants. `$this => $inner`: what serializes a field.
macro_rules! plain_fields {
    ($for:ty, $error:ty, $this:ident => $inner:expr) => {
        $crate::state::fields::plain_fields! { @each $for, $error, $this => $inner;
            SerializeTuple::serialize_element();
            SerializeTupleStruct::serialize_field();
            SerializeTupleVariant::serialize_field();
            SerializeStruct::serialize_field(_name: &'static str);
            SerializeStructVariant::serialize_field(_name: &'static str);
        }
    };
    (@each $for:ty, $error:ty, $this:ident => $inner:expr;) => {};
    (@each $for:ty, $error:ty, $this:ident => $inner:expr;
        $trait:ident::$method:ident($($name:ident: $type:ty)?); $($rest:tt)*
    ) => {
        impl serde::ser::$trait for $for {
            type Ok = ();
            type Error = $error;

            #[inline]
            fn $method<T: serde::Serialize + ?Sized>(
                &mut self,
                $($name: $type,)?
                value: &T,
            ) -> Result<(), $error> {
                let $this = self;
                value.serialize($inner)
            }

            #[inline]
            fn end(self) -> Result<(), $error> {
                Ok(())
            }
        }
        $crate::state::fields::plain_fields! { @each $for, $error, $this => $inner; $($rest)* }
    };
}

pub(super) use plain_fields;
